"""Which trainings the robustness record is made of.

A cell is one `fedgpt2 simulate`: a rule, the loss gate on or off, what three of twelve miners do, a seed. Its name says
nothing of commit or machine, so that what is finished stays finished.
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
NONE, ABSENT = "none", "absent"  # nobody lies: all twelve are honest; the nine honest ones are alone, with their text
REFERENCES = (NONE, ABSENT)
CONTROLS = ("sign_flip", "ipm_100", "scale")  # what a plain mean must not survive
COMPARED = ("sign_flip", "alie", "ipm_100", "min_max")  # rules are compared by these
RULES = ("mean", "median", "krum")  # compared with the default, without a gate


@dataclass(frozen=True)
class Cell:
    """One training."""

    rule: str
    gate: bool
    attack: str
    seed: int

    @property
    def name(self) -> str:
        """What its result is filed under."""
        return f"{self.rule}-{'gate' if self.gate else 'bare'}-{self.attack}-{self.seed}"

    @property
    def twin(self) -> "Cell":
        """The same with the gate on."""
        return replace(self, gate=True)

    def flags(self) -> tuple[str, ...]:
        """Those of `fedgpt2 simulate` that differ from cell to cell."""
        return (
            *("--miners", str(MINERS), "--byzantine", str(BYZANTINE)),
            *("--attack", self.attack, "--run.seed", str(self.seed)),
            *("--aggregation.rule", self.rule, "--aggregation.gate", "true" if self.gate else "false"),
        )


def plan(attacks: Sequence[str]) -> list[Cell]:
    """All cells, each once, in the order in which they tell most: references and controls before the rest.

    The default with its gate: every attack, three seeds. Without the gate: every attack, one seed. Mean, Median and
    Krum: the attacks they are compared by, and for the mean those it must not survive.
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
    """A handful of cells that touches every kind of row."""
    few = [attack for attack in attacks if attack in {*CONTROLS, "min_max", "nan"}]
    kept = {*REFERENCES, *few}
    return [
        cell for cell in plan(few) if cell.seed == SEEDS[0] and cell.attack in kept and cell.rule in {"default", "mean"}
    ]


def _cells(rules: Iterable[str], gates: Iterable[bool], attacks: Iterable[str], seeds: Iterable[int]) -> list[Cell]:
    return [Cell(*parts) for parts in product(rules, gates, attacks, seeds)]
