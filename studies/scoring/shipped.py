"""The shipped ranking over recorded rounds: `fedgpt2.ranking` is given the record of each round, audits included.

Letters: r rounds, m contributions, n recorded rows, k baseline vectors, q seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fedgpt2.config import Ranking
from fedgpt2.protocol.round_record import (
    Audit,
    BaselineVector,
    Bytes,
    Evidence,
    MinerRecord,
    PhaseSeconds,
    Products,
    RoundRecord,
)
from fedgpt2.ranking.audit_sample import draw_sample
from fedgpt2.ranking.budget import budget
from fedgpt2.ranking.rating import MU
from fedgpt2.ranking.table import REVISION, Table, advance, ranks
from fedgpt2.types import Digest, Hotkey, WorkId
from scoring.attacks import ATTACKS, contributions
from scoring.plackett_luce import kendall
from scoring.questions import graded, honest_names, patterns
from scoring.scores import Evidence as Recorded
from scoring.training import AUDITED, FRACTIONS, HONEST, HOSTILE, LENGTH, NOISE, PRESENT, SCORES, STALE, WINDOWS

__all__ = ["RULES", "Rounds", "Standing", "graded_texts", "name_of", "paid", "ranked", "taus"]

Float64 = NDArray[np.float64]

RULES: Mapping[str, Ranking] = {  # by the tokens of a round
    "4,096 tokens": Ranking(tokens=4096),  # 2,048 for the scoring gradient, 512 for each of four audits
    "a tenth": Ranking(),  # of the assigned tokens, the default
}
_TOKENS = WINDOWS * LENGTH  # assigned to each miner
_DRAWS = 4  # draws of the audited miners, when all are present
_ROUNDS_OF_ATTACK = 30
_TURNS: Mapping[str, Callable[[int], bool]] = {  # rounds in which a working miner attacks instead
    "every 2. round": lambda r: r % 2 == 1,
    "every 4. round": lambda r: r % 4 != 0,
    "the first 30": lambda r: r >= 30,
}

_MOMENT = {"moment": BaselineVector(kind="moment")}
_RECENT = {"agg/1": BaselineVector(kind="aggregate", age=1), "agg/2": BaselineVector(kind="aggregate", age=2)}


@dataclass(frozen=True)
class Rounds:
    """A validator's measurements of m contributions, round by round, within the budget of `present` miners."""

    rule: Ranking
    audits: int  # a round
    unit: Float64  # [r] |g|
    gain: Float64  # [r, m] <g, x>
    norm: Float64  # [r, m]
    text: Float64  # [r, m] <gradient on a part of its own text, x> / |x|
    gain_baseline: Float64  # [r, k] <g, b>
    inner_baseline: Float64  # [r, m, k] <x, b>
    gram: Float64  # [r, k, k]
    kinds: tuple[BaselineVector, ...]  # [k]

    @classmethod
    def of(cls, kept: Recorded, contributions: Float64, texts: Sequence[int], present: int, rule: Ranking) -> "Rounds":
        """Measure contributions [m, n] or [r, m, n] of the slots `texts` [m], of which `present` come each round."""
        plan = budget(rule, [_TOKENS] * present)
        gram = kept.gram
        x = np.broadcast_to(contributions, (len(gram), *contributions.shape[-2:]))
        g = kept.vector(f"score/{_nearest(SCORES, plan.gradient)}")
        windows = _nearest(AUDITED, plan.audit / LENGTH)
        audits = np.array([kept.vector(f"audit/{slot}/{windows}") for slot in texts])
        basis = _MOMENT | _RECENT if kept.moment else _RECENT
        vectors = np.array([kept.vector(name) for name in basis])
        side = x @ gram
        norm = np.sqrt((side * x).sum(-1))
        return cls(
            rule=rule,
            audits=plan.audits,
            unit=kept.lengths(g),
            gain=side @ g,
            norm=norm,
            text=(side * audits).sum(-1) / norm,
            gain_baseline=vectors @ gram @ g,
            inner_baseline=side @ vectors.T,
            gram=vectors @ gram @ vectors.T,
            kinds=tuple(basis.values()),
        )

    def record(self, r: int, present: Sequence[int], table: Table, seed: bytes) -> RoundRecord:
        """The record of round r with the miners `present`; those that the ranking draws are audited."""
        names = [name_of(i) for i in present]
        drawn = set(draw_sample(table, names, self.audits, seed + r.to_bytes(4, "big")))
        miners = tuple(
            MinerRecord(
                hotkey=name,
                axon=name,
                slot=i,
                work_id=WorkId(f"{r:032x}{i:032x}"),
                status="admitted",
                norm=float(self.norm[r, i]),
                tokens=_TOKENS,
                seconds=1.0,
            )
            for i, name in zip(present, names, strict=True)
        )
        audits = tuple(
            Audit(hotkey=name, windows=(), slope=float(self.text[r, i]))
            for i, name in zip(present, names, strict=True)
            if name in drawn
        )
        return RoundRecord(
            round=r + 1,
            attempt=0,
            parent=Digest("0" * 64),
            model=Digest("0" * 64),
            applied=True,
            train_loss=0.0,
            lr=1e-3,
            rule="default",
            f=0,
            tokens=_TOKENS * len(names),
            seconds=PhaseSeconds(),
            bytes=Bytes(),
            miners=miners,
            evidence=Evidence(
                revision=REVISION, rule=asdict(self.rule), products=self._products(r, present, names), audits=audits
            ),
        )

    def _products(self, r: int, present: Sequence[int], names: Sequence[Hotkey]) -> Products:
        return Products(
            miners=tuple(names),
            baseline=self.kinds,
            gradient_norm=float(self.unit[r]),
            gradient=tuple(self.gain[r, list(present)].tolist()),
            gradient_baseline=tuple(self.gain_baseline[r].tolist()),
            contributions_baseline=tuple(tuple(row) for row in self.inner_baseline[r, list(present)].tolist()),
            baseline_gram=tuple(tuple(self.gram[r, i, : i + 1].tolist()) for i in range(len(self.kinds))),
        )


def _nearest(recorded: Sequence[int], wanted: float) -> int:
    """The recorded number nearest to the wanted one."""
    return min(recorded, key=lambda number: abs(number - wanted))


@dataclass(frozen=True)
class Standing:
    """Standing after the last round, [m] each."""

    mu: Float64
    place: Float64  # 1 is the best
    weight: Float64  # of the payout


def graded_texts() -> list[int]:
    """Slots whose text the graded miners compute on."""
    return [0, *FRACTIONS, *NOISE, *STALE.values(), HOSTILE]


def name_of(i: int) -> Hotkey:
    """Hotkey of miner i; hotkeys sort by number."""
    return Hotkey(f"miner-{i:03d}")


def ranked(rounds: Rounds, there: NDArray[np.bool_], seed: bytes) -> Standing:
    """The ranking after all rounds, with presence `there` [r, m]."""
    table = Table(rule=rounds.rule)
    for r, present in enumerate(there):
        table, _ = advance(table, rounds.record(r, np.flatnonzero(present).tolist(), table, seed))
    lines = {line.hotkey: line for line in ranks(table)}
    ordered = [lines.get(name_of(i)) for i in range(there.shape[1])]  # None: never present
    return Standing(
        mu=np.array([line.rating if line else MU for line in ordered]),
        place=np.array([float(line.rank if line else len(ordered)) for line in ordered]),
        weight=np.array([line.weight if line else 0.0 for line in ordered]),
    )


def taus(kept: Sequence[Recorded], worth: Float64, adds: Float64, rule: Ranking) -> dict[str, Float64]:
    """Kendall's tau by seed [q] after the last round, all present or 6 of 16: of ratings and of the table's places.

    The truths are `adds`, what a miner adds beyond the baseline vectors, and `worth`, its whole effect.
    """
    found: dict[str, list[float]] = {}
    for each in kept:
        x, texts = graded(each), graded_texts()
        everybody = np.ones((len(each.gram), len(texts)), dtype=np.bool_)
        all_, six = (Rounds.of(each, x, texts, present, rule) for present in (len(texts), PRESENT))
        ends = {
            "all": [ranked(all_, everybody, bytes([draw])) for draw in range(_DRAWS)],
            "six": [ranked(six, there, b"six") for there in patterns(each)],
        }
        for there, standings in ends.items():
            for name, order in (
                ("rating", np.array([s.mu for s in standings])),
                ("table", -np.array([s.place for s in standings])),
            ):
                for truth, true in (("adds", adds), ("whole", worth)):
                    found.setdefault(f"{there} {name} {truth}", []).append(float(kendall(order, true).mean()))
    return {name: np.array(values) for name, values in found.items()}


Paid = tuple[float, float, float, float]


def paid(kept: Sequence[Recorded], rule: Ranking) -> dict[str, Paid]:
    """By attack: how often it ends above an honest miner, its pay over an honest miner's mean, the number of unpaid
    honest miners and the relative deviation of their pay.

    One attacker among 12 honest miners for 30 rounds; or one of 12 that works in some of all rounds.
    """
    made: dict[str, list[Paid]] = {}
    for each in kept:
        honest = np.array([each.vector(name) for name in honest_names()])
        fair = np.broadcast_to(honest, (len(each.gram), *honest.shape))
        attacks = contributions(each)
        for name, result in [*_attacking(each, fair, attacks, rule), *_alternating(each, fair, attacks, rule)]:
            made.setdefault(name, []).append(result)
    means = {name: np.mean(values, 0).tolist() for name, values in made.items()}
    return {name: (above, pay, unpaid, spread) for name, (above, pay, unpaid, spread) in means.items()}


def _attacking(kept: Recorded, fair: Float64, attacks: Float64, rule: Ranking) -> Iterator[tuple[str, Paid]]:
    early = np.ones((min(_ROUNDS_OF_ATTACK, len(fair)), HONEST + 1), dtype=np.bool_)
    for i, name in enumerate(ATTACKS):
        x = np.concatenate([fair, attacks[:, [i]]], axis=1)
        yield name, _last(ranked(Rounds.of(kept, x, [*range(HONEST), HOSTILE], HONEST + 1, rule), early, b"attack"))


def _alternating(kept: Recorded, fair: Float64, attacks: Float64, rule: Ranking) -> Iterator[tuple[str, Paid]]:
    for name in ("loud/1", "agg/1 + 1 random"):
        for when, idle in _TURNS.items():
            x = fair.copy()
            turns = np.array([idle(r) for r in range(len(x))])
            x[turns, -1] = attacks[turns, [*ATTACKS].index(name)]
            everybody = np.ones(x.shape[:2], dtype=np.bool_)
            rounds = Rounds.of(kept, x, range(HONEST), HONEST, rule)
            yield f"works {when}, else {name}", _last(ranked(rounds, everybody, b"turns"))


def _last(standing: Standing) -> Paid:
    """Of the last miner: whether it is above another, its pay over their mean; then their unpaid and deviation."""
    place, weight = standing.place, standing.weight
    others = weight[:-1]
    return (
        float(place[-1] < place[:-1].max()),
        float(weight[-1] / max(others.mean(), 1e-12)),
        float(np.sum(others == 0)),
        float(others.std() / max(others.mean(), 1e-12)),
    )
