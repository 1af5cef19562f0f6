"""The shipped ranking over recorded rounds: `fedgpt2.ranking` is given the evidence of each round, audits included.

Letters: r rounds, m contributions, n kept rows, k free vectors, q seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from fedgpt2.ranking.evidence import Audit, Evidence, Free, MinerEvidence, Products, rule_row
from fedgpt2.ranking.sample import choose
from numpy.typing import NDArray

from fedgpt2.config import Ranking
from fedgpt2.ranking.table import REVISION, Table, advance, ranks
from fedgpt2.types import Hotkey
from scoring.attacks import ATTACKS, contributions
from scoring.plackett_luce import kendall
from scoring.questions import graded, honest_names, patterns
from scoring.scores import Evidence as Recorded
from scoring.training import FRACTIONS, HONEST, HOSTILE, NOISE, STALE, WINDOWS

__all__ = ["TOKENS", "Rounds", "Standing", "graded_texts", "name_of", "paid", "ranked", "taus"]

Float64 = NDArray[np.float64]

TOKENS = 2048  # scoring tokens
_LENGTH = 64  # tokens of a window
_DRAWS = 4  # draws of the audited miners, when all are present
_ROUNDS_OF_ATTACK = 30
_TURNS: Mapping[str, Callable[[int], bool]] = {  # rounds in which a working miner attacks instead
    "every 2. round": lambda r: r % 2 == 1,
    "every 4. round": lambda r: r % 4 != 0,
    "the first 30": lambda r: r >= 30,
}

_MOMENT = {"moment": Free(kind="moment")}
_RECENT = {"agg/1": Free(kind="aggregate", age=1), "agg/2": Free(kind="aggregate", age=2)}


@dataclass(frozen=True)
class Rounds:
    """A validator's measurements of m contributions, round by round."""

    unit: Float64  # [r] |g|
    gain: Float64  # [r, m] <g, x>
    norm: Float64  # [r, m]
    text: Float64  # [r, m] <gradient on a part of its own text, x> / |x|
    gain_free: Float64  # [r, k] <g, b>
    inner_free: Float64  # [r, m, k] <x, b>
    free: Float64  # [r, k, k]
    kinds: tuple[Free, ...]  # [k]
    tokens: int  # assigned to each contribution

    @classmethod
    def of(cls, kept: Recorded, contributions: Float64, texts: Sequence[int], tokens: int = TOKENS) -> "Rounds":
        """Measure contributions [m, n] or [r, m, n] of the slots `texts` [m] on `tokens` scoring tokens."""
        gram = kept.gram
        x = np.broadcast_to(contributions, (len(gram), *contributions.shape[-2:]))
        g = kept.vector(f"score/{tokens}")
        audits = np.array([kept.vector(f"audit/{slot}") for slot in texts])
        basis = _basis(kept)
        free = np.array([kept.vector(name) for name in basis])
        side = x @ gram
        norm = np.sqrt((side * x).sum(-1))
        return cls(
            unit=kept.lengths(g),
            gain=side @ g,
            norm=norm,
            text=(side * audits).sum(-1) / norm,
            gain_free=free @ gram @ g,
            inner_free=side @ free.T,
            free=free @ gram @ free.T,
            kinds=tuple(basis.values()),
            tokens=WINDOWS * _LENGTH,
        )

    def evidence(self, r: int, present: Sequence[int], table: Table, rule: Ranking, seed: bytes) -> Evidence:
        """Evidence of round r with the miners `present`; those that the ranking draws are audited."""
        names = [name_of(i) for i in present]
        drawn = set(choose(table, names, rule.sample, seed + r.to_bytes(4, "big")))
        return Evidence(
            round=r + 1,
            revision=REVISION,
            applied=True,
            rule=rule_row(rule),
            miners=tuple(
                MinerEvidence(hotkey=name, status="admitted", norm=float(self.norm[r, i]), tokens=self.tokens)
                for i, name in zip(present, names, strict=True)
            ),
            products=Products(
                miners=tuple(names),
                free=self.kinds,
                gradient_norm=float(self.unit[r]),
                gradient=tuple(self.gain[r, list(present)].tolist()),
                gradient_free=tuple(self.gain_free[r].tolist()),
                contributions_free=tuple(tuple(row) for row in self.inner_free[r, list(present)].tolist()),
                free_gram=tuple(tuple(self.free[r, i, : i + 1].tolist()) for i in range(len(self.kinds))),
            ),
            audits=tuple(
                Audit(hotkey=name, windows=(), before=float(self.text[r, i]), after=0.0, length=1.0)
                for i, name in zip(present, names, strict=True)
                if name in drawn
            ),
        )


@dataclass(frozen=True)
class Standing:
    """Standing after the last round, [m] each."""

    mu: Float64
    place: Float64  # 1 is the best
    weight: Float64  # of the payout


def _basis(kept: Recorded) -> dict[str, Free]:
    """Baseline vectors of the shipped rule, by recorded row."""
    return _MOMENT | _RECENT if kept.moment else _RECENT


def graded_texts() -> list[int]:
    """Slots whose text the graded miners compute on."""
    return [0, *FRACTIONS, *NOISE, *STALE.values(), HOSTILE]


def name_of(i: int) -> Hotkey:
    """Hotkey of miner i; hotkeys sort by number."""
    return Hotkey(f"miner-{i:03d}")


def ranked(rounds: Rounds, there: NDArray[np.bool_], rule: Ranking, seed: bytes) -> Standing:
    """The ranking after all rounds, with presence `there` [r, m]."""
    table = Table(rule=rule)
    for r, present in enumerate(there):
        found = rounds.evidence(r, np.flatnonzero(present).tolist(), table, rule, seed)
        table, _ = advance(table, found, rule)
    lines = {line.hotkey: line for line in ranks(table)}
    ordered = [lines.get(name_of(i)) for i in range(there.shape[1])]  # None: never present
    return Standing(
        mu=np.array([line.rating if line else rule.mu for line in ordered]),
        place=np.array([float(line.rank if line else len(ordered)) for line in ordered]),
        weight=np.array([line.weight if line else 0.0 for line in ordered]),
    )


def taus(kept: Sequence[Recorded], worth: Float64, adds: Float64, tokens: int = TOKENS) -> dict[str, Float64]:
    """Kendall's tau by seed [q] after the last round, all present or 6 of 16: of ratings and of the table's places.

    The truths are `adds`, what a miner adds beyond the baseline vectors, and `worth`, its whole effect.
    """
    found: dict[str, list[float]] = {}
    for each in kept:
        rounds = Rounds.of(each, graded(each), graded_texts(), tokens)
        everybody = np.ones((len(each.gram), len(graded_texts())), dtype=np.bool_)
        ends = {
            "all": [ranked(rounds, everybody, Ranking(), bytes([draw])) for draw in range(_DRAWS)],
            "six": [ranked(rounds, there, Ranking(), b"six") for there in patterns(each)],
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


def paid(kept: Sequence[Recorded]) -> dict[str, Paid]:
    """By attack: how often it ends above an honest miner, its pay over an honest miner's mean, the number of unpaid
    honest miners and the relative deviation of their pay.

    One attacker among 12 honest miners for 30 rounds; or one of 12 that works in some of all rounds.
    """
    made: dict[str, list[Paid]] = {}
    for each in kept:
        honest = np.array([each.vector(name) for name in honest_names()])
        fair = np.broadcast_to(honest, (len(each.gram), *honest.shape))
        attacks = contributions(each)
        for name, result in [*_attacking(each, fair, attacks), *_alternating(each, fair, attacks)]:
            made.setdefault(name, []).append(result)
    means = {name: np.mean(values, 0).tolist() for name, values in made.items()}
    return {name: (above, pay, unpaid, spread) for name, (above, pay, unpaid, spread) in means.items()}


def _attacking(kept: Recorded, fair: Float64, attacks: Float64) -> Iterator[tuple[str, Paid]]:
    early = np.ones((min(_ROUNDS_OF_ATTACK, len(fair)), HONEST + 1), dtype=np.bool_)
    for i, name in enumerate(ATTACKS):
        rounds = Rounds.of(kept, np.concatenate([fair, attacks[:, [i]]], axis=1), [*range(HONEST), HOSTILE])
        yield name, _last(ranked(rounds, early, Ranking(), b"lies"))


def _alternating(kept: Recorded, fair: Float64, attacks: Float64) -> Iterator[tuple[str, Paid]]:
    for name in ("loud/1", "agg/1 + 1 random"):
        for when, idle in _TURNS.items():
            x = fair.copy()
            turns = np.array([idle(r) for r in range(len(x))])
            x[turns, -1] = attacks[turns, [*ATTACKS].index(name)]
            everybody = np.ones(x.shape[:2], dtype=np.bool_)
            yield (
                f"works {when}, else {name}",
                _last(ranked(Rounds.of(kept, x, range(HONEST)), everybody, Ranking(), b"turns")),
            )


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
