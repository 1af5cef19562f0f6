"""What one round shows about each miner with an order, before it is combined with earlier rounds."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from fedgpt2.errors import Reason
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord
from fedgpt2.ranking.credit import Credit, credits
from fedgpt2.types import Hotkey

__all__ = ["MinerOutcome", "RoundOutcome", "common_failure", "keepers", "round_outcomes", "scaled"]

_REPLAY = 0.01  # residual fraction below which a contribution is a replay
_COMMON = 0.5  # share of failed miners above which the failure has a common cause


class RoundOutcome(StrEnum):
    """How a miner's round counts."""

    OWN = "own"  # own gradient: compared with the others where it was measured
    COPY = "copy"  # near-identical to a gradient that another miner committed to earlier: neither compared nor paid
    REPLAY = "replay"  # nothing outside the span of the baseline vectors: last place
    FAULT = "fault"  # refused or late by its own fault: last place
    EXCUSED = "excused"  # the same in a round of a common failure: no effect
    UNHEARD = "unheard"  # the link or the validator failed: no effect


@dataclass(frozen=True)
class MinerOutcome:
    """A miner's round. `score` is compared with the other miners'; None where nothing was measured."""

    verdict: RoundOutcome
    score: float | None = None
    credit: Credit | None = None
    keeper: Hotkey | None = None  # of a copy: the miner that committed to the gradient first

    @property
    def last(self) -> bool:
        """Whether it takes the last place."""
        return self.verdict in (RoundOutcome.FAULT, RoundOutcome.REPLAY)


def common_failure(record: RoundRecord) -> bool:
    """Whether more than half of the miners with an order failed, by whichever fault: then no miner is blamed.

    So many simultaneous failures have a common cause, since at most a quarter of the miners is assumed to be hostile.
    """
    failed = sum(not miner.admitted for miner in record.miners)
    return failed > _COMMON * len(record.miners)


def keepers(record: RoundRecord, distrusted: Collection[Hotkey] = ()) -> dict[Hotkey, Hotkey]:
    """For each admitted miner, who keeps the credit: in a cluster, the first to commit to its digest.

    By the validator's clock; a commitment without a time comes last, equal times go by hotkey. A `distrusted` miner
    keeps the credit only in a cluster of distrusted miners: assignments are public, and a faster machine may compute
    another miner's text in place of its own.
    """
    first: dict[int, tuple[bool, float, Hotkey]] = {}
    for miner in record.miners:
        if miner.admitted and miner.cluster is not None:
            claim = (miner.hotkey in distrusted, _commitment(miner), miner.hotkey)
            first[miner.cluster] = min(first.get(miner.cluster, claim), claim)
    return {
        miner.hotkey: miner.hotkey if miner.cluster is None else first[miner.cluster][2]
        for miner in record.miners
        if miner.admitted
    }


def _commitment(miner: MinerRecord) -> float:
    return math.inf if miner.committed is None else miner.committed


def round_outcomes(record: RoundRecord, distrusted: Collection[Hotkey] = ()) -> dict[Hotkey, MinerOutcome]:
    """The outcome of every miner with an order, in the order of the hotkeys; `distrusted` as in `keepers`."""
    kept, measured, excused = keepers(record, distrusted), credits(record), common_failure(record)
    return {
        miner.hotkey: _admitted(miner, kept[miner.hotkey], measured.get(miner.hotkey))
        if miner.admitted
        else _absent(miner, excused=excused)
        for miner in sorted(record.miners, key=lambda miner: miner.hotkey)
    }


def _absent(miner: MinerRecord, *, excused: bool) -> MinerOutcome:
    if miner.reason == Reason.DUPLICATE:
        return MinerOutcome(RoundOutcome.COPY)  # no fault: nobody knows which of the two is the original
    if not miner.at_fault:
        return MinerOutcome(RoundOutcome.UNHEARD)
    return MinerOutcome(RoundOutcome.EXCUSED if excused else RoundOutcome.FAULT)


def _admitted(miner: MinerRecord, keeper: Hotkey, credit: Credit | None) -> MinerOutcome:
    if keeper != miner.hotkey:
        return MinerOutcome(RoundOutcome.COPY, credit=credit, keeper=keeper)
    if credit.residual_fraction < _REPLAY if credit else miner.norm == 0.0:
        return MinerOutcome(RoundOutcome.REPLAY, credit=credit)
    score = max(0.0, credit.mixed) if credit and math.isfinite(credit.mixed) else None
    return MinerOutcome(RoundOutcome.OWN, score, credit)


def scaled(outcomes: Mapping[Hotkey, MinerOutcome], factors: Mapping[Hotkey, float]) -> dict[Hotkey, MinerOutcome]:
    """The outcomes with each score multiplied by the miner's factor."""
    return {
        hotkey: outcome if outcome.score is None else replace(outcome, score=outcome.score * factors[hotkey])
        for hotkey, outcome in outcomes.items()
    }
