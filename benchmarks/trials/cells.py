"""The cells of a table: one `fedgpt2 simulate` each, with a rule, the loss gate on or off, an attack and a seed.

A cell's name holds neither commit nor machine, so a finished cell stays finished.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

__all__ = [
    "ABSENT",
    "BYZANTINE",
    "COMPARED",
    "CONTROLS",
    "MINERS",
    "NONE",
    "REFERENCES",
    "RULES",
    "SEEDS",
    "Cell",
    "plan",
    "quick",
]

MINERS, BYZANTINE = 12, 3
SEEDS = (1, 2, 3)
NONE, ABSENT = "none", "absent"  # all 12 miners honest; the 9 honest miners alone, with their own text
REFERENCES = (NONE, ABSENT)
CONTROLS = ("sign_flip", "ipm_100", "scale")  # attacks that must break a plain mean
COMPARED = ("sign_flip", "alie", "ipm_100", "min_max")  # attacks by which rules are compared
RULES = ("mean", "median", "krum")  # compared with the default rule, without the gate


@dataclass(frozen=True)
class Cell:
    """One training."""

    rule: str
    gate: bool
    attack: str
    seed: int

    @property
    def name(self) -> str:
        """Key of its row in the table."""
        return f"{self.rule}-{'gate' if self.gate else 'bare'}-{self.attack}-{self.seed}"

    @property
    def twin(self) -> "Cell":
        """The same cell with the gate on."""
        return replace(self, gate=True)

    def flags(self) -> tuple[str, ...]:
        """Flags of `fedgpt2 simulate` that differ between cells."""
        return (
            *("--miners", str(MINERS), "--byzantine", str(BYZANTINE)),
            *("--attack", self.attack, "--run.seed", str(self.seed)),
            *("--aggregation.rule", self.rule, "--aggregation.gate", "true" if self.gate else "false"),
        )


def plan(attacks: Sequence[str]) -> list[Cell]:
    """All cells of the robustness table, each once, references and controls first.

    Default rule with the gate: every attack, three seeds. Without the gate: every attack, one seed. Mean, Median and
    Krum: the attacks of COMPARED, for the mean also those of CONTROLS.
    """
    first = SEEDS[:1]
    groups = (
        _cells(["default"], [True], REFERENCES, SEEDS),
        _cells(["mean"], [False], (*REFERENCES, *CONTROLS), first),
        _cells(["default"], [True], attacks, first),
        _cells(["default"], [True], attacks, SEEDS[1:]),
        _cells(["default"], [False], (*REFERENCES, *attacks), first),
        _cells(RULES, [False], (*REFERENCES, *COMPARED), first),
    )
    return list(dict.fromkeys(cell for group in groups for cell in group))


def quick(attacks: Sequence[str]) -> list[Cell]:
    """A few cells that cover every kind of row."""
    few = [attack for attack in attacks if attack in {*CONTROLS, "min_max", "nan"}]
    kept = {*REFERENCES, *few}
    return [
        cell for cell in plan(few) if cell.seed == SEEDS[0] and cell.attack in kept and cell.rule in {"default", "mean"}
    ]


def _cells(rules: Iterable[str], gates: Iterable[bool], attacks: Iterable[str], seeds: Iterable[int]) -> list[Cell]:
    return [Cell(*parts) for parts in product(rules, gates, attacks, seeds)]
