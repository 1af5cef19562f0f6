"""Write docs/settings.md from the settings themselves: `python scripts/write_settings.py`; a test holds it current."""

from collections.abc import Mapping
from pathlib import Path

from fedgpt2.cli.benches import Bench, ComputeBench, DataBench, RoundBench
from fedgpt2.cli.data import Prefetch, Show, Verify
from fedgpt2.cli.demo import Demo
from fedgpt2.cli.export import Export
from fedgpt2.cli.flags import Flag, flags_of
from fedgpt2.cli.ranking import RankingCommand
from fedgpt2.cli.sample import Sample
from fedgpt2.cli.simulate import Simulate
from fedgpt2.config import MinerConfig, ValidatorConfig

__all__ = ["PROGRAMS", "document", "main"]

PROGRAMS: Mapping[str, type] = {
    "miner": MinerConfig,
    "validator": ValidatorConfig,
    "demo": Demo,
    "simulate": Simulate,
    "ranking": RankingCommand,
    "sample": Sample,
    "export": Export,
    "data verify": Verify,
    "data prefetch": Prefetch,
    "data show": Show,
    "bench transport": Bench,
    "bench aggregation": Bench,
    "bench round": RoundBench,
    "bench compute": ComputeBench,
    "bench data": DataBench,
}

_ENDLESS = 2**53 - 1  # the largest number that JSON carries exactly: no bound a person would look up

_HEAD = """\
# Settings

Every flag of every command, made from the settings themselves (`make docs`).

A setting comes from its flag, else from the environment, else from the TOML file named by `--config` (or
`FEDGPT2_CONFIG`), else from its default. Names are never abbreviated; an unknown one is an error wherever it stands.
`--round.deadline 30`, `FEDGPT2_ROUND__DEADLINE=30` and

    [round]
    deadline = 30

say the same thing. Lists take several words on the command line, one string of words in the environment, a list in
TOML. A switch needs no value: `--axons.accept_new`. One TOML file may serve miner and validator: each takes what it
knows. `--axons 8091 8092` is `addresses` under `[axons]`, or `axons = [8091, 8092]` at the top of the file,
and `FEDGPT2_AXONS__ADDRESSES` in the environment.
"""


def main() -> None:
    """Write the file."""
    Path(__file__).parents[1].joinpath("docs", "settings.md").write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole document."""
    return "\n".join([_HEAD, *(_section(name, settings) for name, settings in PROGRAMS.items())])


def _section(name: str, settings: type) -> str:
    lines = [f"## `fedgpt2 {name}`", "", "| flag | default | what |", "|---|---|---|"]
    return "\n".join([*lines, *(_row(flag) for flag in flags_of(settings)), ""])


def _row(flag: Flag) -> str:
    kind = {"str": "TEXT", "int": "N", "float": "X", "bool": ""}[flag.kind.__name__] + (" ..." if flag.many else "")
    shown = f"`{flag.name} {kind}`".replace(" `", "`")
    return f"| {shown} | {flag.shown_default} | {flag.help}{_range(flag)} |".replace("\n", " ")


def _range(flag: Flag) -> str:
    most = None if flag.most is None or flag.most >= _ENDLESS else flag.most
    if flag.least is None and most is None:
        return ""
    return f" (at least {flag.least:g})" if most is None else f" ({flag.least:g} to {most:.10g})"


if __name__ == "__main__":
    main()
