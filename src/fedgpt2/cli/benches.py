"""`fedgpt2 bench NAME`: measure this package and its baselines, interleaved in one run."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fedgpt2.cli.help import HELP_FLAGS
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.sources import suggestion
from fedgpt2.config import setting
from fedgpt2.errors import UsageError

__all__ = ["BENCHES", "Bench", "ComputeBench", "DataBench", "RoundBench", "main"]

BENCHES: Mapping[str, str] = {
    "transport": "the weights to miners and their gradients back over loopback, without compute",
    "compute": "the gradient of one batch on this CPU",
    "round": "a whole round: send, compute, receive, admit, step",
    "aggregation": "combining 16 contributions into one gradient, with each rule",
    "data": "the speed of turning pages into windows, and the speed at which a model uses them",
}

_PRESET = "model size: tiny, nano, small (124M), medium, large or xl"


@dataclass(frozen=True)
class Bench:
    """Settings of `fedgpt2 bench NAME`."""

    preset: str = setting("small", _PRESET)
    repeats: int = setting(5, "measurements per candidate", least=1)
    json: bool = setting(False, "print JSON instead of a table")


@dataclass(frozen=True)
class ComputeBench(Bench):
    """Settings of `fedgpt2 bench compute`."""

    tokens: int = setting(2048, "tokens in the timed batch", least=1)
    steps: int = setting(200, "optimizer steps before gradients are compared again; 0: no second comparison", least=0)


@dataclass(frozen=True)
class RoundBench(Bench):
    """Settings of `fedgpt2 bench round`."""

    preset: str = setting("nano", _PRESET)


@dataclass(frozen=True)
class DataBench(Bench):
    """Settings of `fedgpt2 bench data`."""

    preset: str = setting("nano", _PRESET)


_KINDS: Mapping[str, type[Bench]] = {"compute": ComputeBench, "round": RoundBench, "data": DataBench}


def main(argv: Sequence[str]) -> int:
    """Run one bench and return its exit code. Raises UsageError for an unknown name."""
    name = argv[0] if argv else "--help"
    if name in HELP_FLAGS:
        print(_help())
        return 0 if argv else UsageError.exit_code
    names = _present()
    if name not in names:
        raise UsageError(f"unknown bench {name}{suggestion(name, names)}; one of {', '.join(names)}")
    prog = f"fedgpt2 bench {name}"
    about = f"Measure {BENCHES[name]}."
    settings = asdict(
        parse(_KINDS.get(name, Bench), argv[1:], prog=prog, about=about, example=f"{prog} --preset nano --repeats 3")
    )
    module = importlib.import_module(f"fedgpt2.cli.bench.{name}")
    code: int = module.run(as_json=settings.pop("json"), **settings)
    return code


def _present() -> list[str]:
    return [name for name in BENCHES if importlib.util.find_spec(f"fedgpt2.cli.bench.{name}")]


def _help() -> str:
    lines = ["usage: fedgpt2 bench NAME [--preset NAME] [--repeats N] [--json]", ""]
    return "\n".join(lines + [f"  {name:12} {BENCHES[name]}" for name in _present()])
