"""Write docs/settings.md from the settings: `python scripts/write_settings.py`; a test checks that it is current."""

from collections.abc import Mapping, Sequence
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

_COMPLETE = ("miner", "validator")  # programs that list all their settings; the others refer to these
_FEW = 3  # settings of another program that are listed again
_NO_BOUND = 2**53 - 1  # the largest integer that JSON carries exactly; not worth stating

_HEAD = """\
# Settings

Every flag of every command, generated from the settings (`make docs`). `fedgpt2 COMMAND --help` shows the settings in
**bold**, `--help-all` all of them.

The value of a setting is taken from its flag, else from the environment, else from the TOML file named by `--config`
(or `FEDGPT2_CONFIG`), else it is the default. Names are never abbreviated; an unknown name is an error, in the file and
in the environment too. These three are equivalent: `--round.deadline 30`, `FEDGPT2_ROUND__DEADLINE=30` and

    [round]
    deadline = 30

A list takes several words on the command line, one string of words in the environment, and a list in TOML. A switch
needs no value: `--axons.accept_new`. One TOML file can serve miner and validator: each ignores the other's settings.
`--axons 8091 8092` is `addresses` under `[axons]`, or `axons = [8091, 8092]` at the top of the file, and
`FEDGPT2_AXONS__ADDRESSES` in the environment.
"""


def main() -> None:
    """Write the file."""
    Path(__file__).parents[1].joinpath("docs", "settings.md").write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole document."""
    listed: dict[Flag, str] = {}  # the complete section that lists a setting
    sections = []
    for name, settings in PROGRAMS.items():
        flags = flags_of(settings)
        sections.append(_section(name, flags, {} if name in _COMPLETE else listed))
        if name in _COMPLETE:
            listed |= dict.fromkeys(flags, name)
    return "\n".join([_HEAD, *sections])


def _section(name: str, flags: Sequence[Flag], listed: Mapping[Flag, str]) -> str:
    same = {other: [flag for flag in flags if listed.get(flag) == other] for other in _COMPLETE}
    elsewhere = {other: found for other, found in same.items() if len(found) > _FEW}
    new = [flag for flag in flags if not any(flag in found for found in elsewhere.values())]
    lines = [f"## `fedgpt2 {name}`", "", "| flag | default | what |", "|---|---|---|", *map(_row, new), ""]
    for other, found in elsewhere.items():
        lines += [f"As under [`fedgpt2 {other}`](#fedgpt2-{other}): {', '.join(map(_name, found))}.", ""]
    return "\n".join(lines)


def _row(flag: Flag) -> str:
    note = f". {flag.note.removesuffix('.')}" if flag.note else ""
    return f"| {_name(flag, flag.metavar)} | {flag.shown_default} | {flag.help}{_range(flag)}{note} |".replace(
        "\n", " "
    )


def _name(flag: Flag, metavar: str = "") -> str:
    text = f"`{flag.name} {metavar}".rstrip() + "`"
    return (f"**{text}**" if flag.common else text).replace("|", "\\|")


def _range(flag: Flag) -> str:
    most = None if flag.most is None or flag.most >= _NO_BOUND else flag.most
    if flag.least is None and most is None:
        return ""
    return f" (at least {flag.least:g})" if most is None else f" ({flag.least:g} to {most:.10g})"


if __name__ == "__main__":
    main()
