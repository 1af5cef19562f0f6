"""The project's own ranking, audits and all, over kept rounds: `fedgpt2.ranking` is given the evidence of each.

Letters: r rounds, m contributions, k free vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from credit.collect import FRACTIONS, LIAR, NOISE, STALE, WINDOWS
from credit.scores import Evidence as Kept
from fedgpt2.config import Ranking
from fedgpt2.ranking.evidence import Audit, Evidence, Free, MinerEvidence, Products, rule_row
from fedgpt2.ranking.sample import choose
from fedgpt2.ranking.table import Table, advance, ranks
from fedgpt2.types import Hotkey

__all__ = ["Rounds", "Standing", "graded_texts", "ranked"]

Float64 = NDArray[np.float64]

_FREE = {"moment": Free(kind="moment"), "agg/1": Free(kind="aggregate", age=1), "agg/2": Free(kind="aggregate", age=2)}


@dataclass(frozen=True)
class Rounds:
    """What a validator measures of m contributions, round by round."""

    unit: Float64  # [r] |g|
    gain: Float64  # [r, m] <g, x>
    norm: Float64  # [r, m]
    text: Float64  # [r, m] <gradient on a part of its own text, x> / |x|
    gain_free: Float64  # [r, k] <g, b>
    inner_free: Float64  # [r, m, k] <x, b>
    free: Float64  # [r, k, k]
    tokens: int

    @classmethod
    def of(cls, kept: Kept, contributions: Float64, texts: Sequence[int], length: int, scored: int = 2048) -> "Rounds":
        """Of contributions [m, n] or [r, m, n], whose text is that of the slots `texts` [m]."""
        gram = kept.gram
        x = np.broadcast_to(contributions, (len(gram), *contributions.shape[-2:]))
        g = kept.vector(f"score/{scored}")
        audits = np.array([kept.vector(f"audit/{slot}") for slot in texts])
        free = np.array([kept.vector(name) for name in _FREE])
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
            tokens=WINDOWS * length,
        )

    def evidence(self, r: int, present: Sequence[int], table: Table, rule: Ranking, seed: bytes) -> Evidence:
        """Of round r, where `present` are there and those that the ranking draws are audited."""
        names = [name_of(i) for i in present]
        drawn = set(choose(table, names, rule.sample, seed + r.to_bytes(4, "big")))
        return Evidence(
            round=r + 1,
            applied=True,
            rule=rule_row(rule),
            miners=tuple(
                MinerEvidence(hotkey=name, status="admitted", norm=float(self.norm[r, i]), tokens=self.tokens)
                for i, name in zip(present, names, strict=True)
            ),
            products=Products(
                miners=tuple(names),
                free=tuple(_FREE.values()),
                gradient_norm=float(self.unit[r]),
                gradient=tuple(self.gain[r, list(present)].tolist()),
                gradient_free=tuple(self.gain_free[r].tolist()),
                contributions_free=tuple(tuple(row) for row in self.inner_free[r, list(present)].tolist()),
                free_gram=tuple(tuple(self.free[r, i, : i + 1].tolist()) for i in range(len(_FREE))),
            ),
            audits=tuple(
                Audit(hotkey=name, windows=(), before=float(self.text[r, i]), after=0.0, length=1.0)
                for i, name in zip(present, names, strict=True)
                if name in drawn
            ),
        )


@dataclass(frozen=True)
class Standing:
    """After the last round, [m] each."""

    mu: Float64
    place: Float64  # in the table, 1 the best
    weight: Float64  # of the payout


def graded_texts() -> list[int]:
    """Slots whose text the graded miners compute on."""
    return [0, *FRACTIONS, *NOISE, *STALE.values(), LIAR]


def name_of(i: int) -> Hotkey:
    """Hotkeys sort as their miners are numbered."""
    return Hotkey(f"miner-{i:03d}")


def ranked(rounds: Rounds, there: NDArray[np.bool_], rule: Ranking, seed: bytes) -> Standing:
    """The ranking after rounds in which `there` [r, m] were present."""
    table = Table(rule=rule)
    for r, present in enumerate(there):
        found = rounds.evidence(r, np.flatnonzero(present).tolist(), table, rule, seed)
        table, _ = advance(table, found, rule)
    lines = {line.hotkey: line for line in ranks(table)}
    ordered = [lines[name_of(i)] for i in range(there.shape[1])]
    return Standing(
        mu=np.array([line.rating for line in ordered]),
        place=np.array([float(line.rank) for line in ordered]),
        weight=np.array([line.weight for line in ordered]),
    )
