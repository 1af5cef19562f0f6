"""Compare the cells: each attack's final loss against the attack-free one, and against its limit.

The attack-free loss is the lower of two trainings with the same seed, rule and gate: all 12 miners honest, and the 9
honest miners alone. A positive control is compared with the higher of the two.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from fedgpt2.simulate.attacks.registry import ADAPTIVE
from trials.cells import ABSENT, COMPARED, CONTROLS, REFERENCES, RULES, SEEDS, Cell
from trials.table import Result

__all__ = ["LIMIT", "LIMIT_ADAPTIVE", "WORSE", "Control", "Measured", "Row", "baseline", "compared", "control", "judge"]

LIMIT, LIMIT_ADAPTIVE = 1.02, 1.05  # final loss over the attack-free one
WORSE = 1.10  # least ratio of a positive control

Results = Mapping[Cell, Result]


@dataclass(frozen=True)
class Measured:
    """One training against its attack-free reference."""

    seed: int
    loss: float  # at the end, nats a token; infinite if it diverged
    ratio: float  # to the attack-free loss; NaN without a reference
    alone: float  # ratio to the loss of the honest miners alone; NaN without it
    share: float | None  # of the aggregation weight that hostile miners had, mean over rounds
    cosine: float | None  # of the aggregate with the honest mean, mean over rounds
    kept: int  # rounds without a step
    halved: int  # rounds with half a step


@dataclass(frozen=True)
class Control:
    """An attack on a plain mean, which must raise the loss."""

    attack: str
    ratio: float

    @property
    def void(self) -> bool:
        """Whether the loss did not rise, so that the attack's row shows nothing."""
        return not self.ratio >= WORSE


@dataclass(frozen=True)
class Row:
    """An attack on the default rule: with the gate on every seed, without it on one."""

    attack: str
    seeds: tuple[Measured, ...]
    bare: Measured | None
    control: Control | None

    @property
    def limit(self) -> float:
        """The largest ratio allowed."""
        return LIMIT_ADAPTIVE if self.attack in ADAPTIVE else LIMIT

    @property
    def worst(self) -> float:
        """The largest ratio of all seeds; NaN without one."""
        return _worst(each.ratio for each in self.seeds)

    @property
    def alone(self) -> float:
        """The largest ratio to the honest miners alone; NaN without one."""
        return _worst(each.alone for each in self.seeds)

    @property
    def share(self) -> float | None:
        """The largest weight share of all seeds."""
        return max(_known(each.share for each in self.seeds), default=None)

    @property
    def cosine(self) -> float | None:
        """The smallest cosine of all seeds."""
        return min(_known(each.cosine for each in self.seeds), default=None)

    @property
    def holds(self) -> bool:
        """Whether every seed is measured and within the limit, and the control is not void."""
        return len(self.seeds) == len(SEEDS) and self.worst <= self.limit and not self.void

    @property
    def void(self) -> bool:
        """Whether the control is void."""
        return self.control is not None and self.control.void

    @property
    def verdict(self) -> str:
        """The row's last cell."""
        if self.void and self.control is not None:
            return f"void: the mean ended at {percent(self.control.ratio)} too"
        if not self.seeds:
            return "not run"
        if math.isnan(self.worst):
            return "nothing to compare with"
        if not self.worst <= self.limit:
            return f"broken: over {percent(self.limit)}"
        missing = len(SEEDS) - len(self.seeds)
        rest = f", {missing} of {len(SEEDS)} seeds not run" if missing else ""
        if self.bare is not None and self.bare.ratio > self.limit:
            return f"holds{rest}; only the gate stopped it"
        return f"holds{rest}"


def baseline(results: Results, like: Cell) -> float:
    """Attack-free loss for a cell's rule, gate and seed: the lower of the two; NaN if one is missing."""
    return min(_references(results, like), default=math.nan)


def judge(results: Results, attacks: Sequence[str]) -> list[Row]:
    """One row an attack, in the order given."""
    controls = {attack: control(results, attack) for attack in CONTROLS}
    rows = []
    for attack in attacks:
        cells = [Cell("default", True, attack, seed) for seed in SEEDS]
        bare = Cell("default", False, attack, SEEDS[0])
        rows.append(
            Row(
                attack,
                tuple(measure(results, cell) for cell in cells if cell in results),
                measure(results, bare) if bare in results else None,
                controls.get(attack),
            )
        )
    return rows


def control(results: Results, attack: str) -> Control | None:
    """The attack on a plain mean against the higher attack-free loss; None if a result is missing."""
    cell = Cell("mean", False, attack, SEEDS[0])
    references = _references(results, cell)
    if cell not in results or not references:
        return None
    return Control(attack, _loss(results[cell]) / max(references))


def compared(results: Results) -> dict[str, dict[str, Measured]]:
    """Rule -> attack -> measurement, for every rule without the gate."""
    table = {}
    for rule in ("default", *RULES):
        cells = [Cell(rule, False, attack, SEEDS[0]) for attack in (*COMPARED, *CONTROLS)]
        table[rule] = {cell.attack: measure(results, cell) for cell in cells if cell in results}
    return table


def measure(results: Results, cell: Cell) -> Measured:
    """Compare the cell's training with its reference."""
    result = results[cell]
    loss = _loss(result)
    alone = replace(cell, attack=ABSENT)
    applied = [row for row in result.rounds if row["applied"]]
    return Measured(
        seed=cell.seed,
        loss=loss,
        ratio=loss / baseline(results, cell),
        alone=loss / _loss(results[alone]) if alone in results else math.nan,
        share=_mean(row["hostile_share"] for row in applied),
        cosine=_mean(row["cosine"] for row in applied),
        kept=len(result.rounds) - len(applied),
        halved=sum(row["reason"] == "halved" for row in applied),
    )


def percent(ratio: float) -> str:
    """A ratio of losses as its excess over one: +1.3 %."""
    if math.isnan(ratio):
        return "?"
    return "diverged" if math.isinf(ratio) else f"{100 * (ratio - 1):+.1f} %"


def _references(results: Results, like: Cell) -> list[float]:
    """Both attack-free losses, or an empty list."""
    cells = [Cell(like.rule, like.gate, attack, like.seed) for attack in REFERENCES]
    return [_loss(results[cell]) for cell in cells] if all(cell in results for cell in cells) else []


def _loss(result: Result) -> float:
    loss = result.final_val_loss
    return math.inf if loss is None or not math.isfinite(loss) else loss


def _worst(ratios: Iterable[float]) -> float:
    """The largest; NaN if there is none or one is NaN."""
    known = list(ratios)
    return math.nan if any(map(math.isnan, known)) else max(known, default=math.nan)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return fmean(known) if known else None
