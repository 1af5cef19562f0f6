"""`fedgpt2 bench NAME`: measurements against baselines, interleaved in one run."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fedgpt2.cli.parsing import parse
from fedgpt2.cli.sources import suggestion
from fedgpt2.config import setting
from fedgpt2.errors import UsageError

__all__ = ["BENCHES", "Bench", "ComputeBench", "DataBench", "RoundBench", "main"]

BENCHES: Mapping[str, str] = {
    "transport": "the state to miners and their gradients back, over loopback, without compute",
    "compute": "the gradient of one batch on this CPU",
    "round": "a whole round: send, compute, receive, admit, step",
    "aggregation": "16 contributions into one gradient, by every rule",
    "data": "how fast pages become windows, against how fast a model uses them",
}


@dataclass(frozen=True)
class Bench:
    """Settings of `fedgpt2 bench NAME`."""

    preset: str = setting("small", "tiny, nano, small (124M), medium, large or xl")
    repeats: int = setting(5, "how often each candidate is measured", least=1)
    json: bool = setting(False, "print JSON instead of a table")


@dataclass(frozen=True)
class ComputeBench(Bench):
    """Settings of `fedgpt2 bench compute`."""

    tokens: int = setting(2048, "tokens of the batch whose gradient is timed", least=1)
    steps: int = setting(200, "optimizer steps after which gradients are compared again; 0: not at all", least=0)


@dataclass(frozen=True)
class RoundBench(Bench):
    """Settings of `fedgpt2 bench round`."""

    preset: str = setting("nano", "tiny, nano, small (124M), medium, large or xl")


@dataclass(frozen=True)
class DataBench(Bench):
    """Settings of `fedgpt2 bench data`."""

    preset: str = setting("nano", "who uses the text: tiny, nano, small (124M), medium, large or xl")


_KINDS: Mapping[str, type[Bench]] = {"compute": ComputeBench, "round": RoundBench, "data": DataBench}


def main(argv: Sequence[str]) -> int:
    """Run one bench; its exit code. Raises UsageError for a name that is none."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0 if argv else UsageError.exit_code
    names = _present()
    if name not in names:
        raise UsageError(f"unknown bench {name}{suggestion(name, names)}; one of {', '.join(names)}")
    settings = asdict(
        parse(_KINDS.get(name, Bench), argv[1:], prog=f"fedgpt2 bench {name}", about=f"Measures {BENCHES[name]}.")
    )
    module = importlib.import_module(f"fedgpt2.cli.bench.{name}")
    code: int = module.run(as_json=settings.pop("json"), **settings)
    return code


def _present() -> list[str]:
    return [name for name in BENCHES if importlib.util.find_spec(f"fedgpt2.cli.bench.{name}")]


def _help() -> str:
    lines = ["usage: fedgpt2 bench NAME [--preset NAME] [--repeats N] [--json]", ""]
    return "\n".join(lines + [f"  {name:12} {BENCHES[name]}" for name in _present()])
