"""What a round says of each miner that was given an order, before anything is added to what was known of it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fedgpt2.config import Ranking
from fedgpt2.errors import Reason
from fedgpt2.ranking.credit import Credit, credits, leave_one_out
from fedgpt2.ranking.evidence import Evidence, MinerEvidence
from fedgpt2.types import Hotkey

__all__ = ["Mark", "RoundOutcome", "keepers", "marks", "waived"]


class RoundOutcome(StrEnum):
    """How a miner's round counts."""

    OWN = "own"  # a gradient of its own: compared with the others', where it was measured
    COPY = "copy"  # one computation with a miner that had committed to it before: neither compared nor paid
    REPLAY = "replay"  # nothing outside of what anybody has for free: last place
    FAULT = "fault"  # refused or late by its own fault: last place
    EXCUSED = "excused"  # by its own fault, in a round that was bad as a whole: no matter
    UNHEARD = "unheard"  # the link's fault, or the validator's: no matter


@dataclass(frozen=True)
class Mark:
    """A miner's round. `score` is what is compared; None where there is nothing that can be.

    By the rule `proven` its share and grounding, of which other rounds tell, are multiplied in at last.
    """

    verdict: RoundOutcome
    score: float | None = None
    credit: Credit | None = None
    keeper: Hotkey | None = None  # of a copy: whose it is

    @property
    def loses(self) -> bool:
        """Whether it takes the last place."""
        return self.verdict in (RoundOutcome.FAULT, RoundOutcome.REPLAY)


def waived(evidence: Evidence, rule: Ranking) -> bool:
    """Whether the round was bad as a whole, so that nobody is blamed.

    It was if more than `ranking.waive` of the miners given an order failed, by whosever fault: so many failures at
    once have a common cause, and at most a quarter of the miners are taken to be hostile.
    """
    failed = sum(not miner.admitted for miner in evidence.miners)
    return failed > rule.waive * len(evidence.miners)


def keepers(evidence: Evidence, distrusted: Collection[Hotkey] = ()) -> dict[Hotkey, Hotkey]:
    """Who keeps the credit of each admitted contribution: of a cluster, the one that committed to its digest first.

    The clock is the validator's. One whose commitment has no time comes last; equal times go by hotkey. Who is
    `distrusted` keeps it only among others that are: assignments are public, and a machine that computes another's text
    in place of its own may well be the faster one.
    """
    first: dict[int, tuple[bool, float, str]] = {}
    for miner in evidence.miners:
        if miner.admitted and miner.cluster is not None:
            claim = (miner.hotkey in distrusted, _commitment(miner), miner.hotkey)
            first[miner.cluster] = min(first.get(miner.cluster, claim), claim)
    return {
        Hotkey(m.hotkey): Hotkey(m.hotkey if m.cluster is None else first[m.cluster][2])
        for m in evidence.miners
        if m.admitted
    }


def _commitment(miner: MinerEvidence) -> float:
    return math.inf if miner.committed is None else miner.committed


def marks(evidence: Evidence, rule: Ranking, distrusted: Collection[Hotkey] = ()) -> dict[Hotkey, Mark]:
    """A mark for every miner of the round, in the order of their hotkeys; `distrusted` as for `keepers`."""
    kept, measured, excused = keepers(evidence, distrusted), credits(evidence, rule), waived(evidence, rule)
    own = {
        hotkey for hotkey, keeper in kept.items() if hotkey == keeper and not _replay(hotkey, evidence, measured, rule)
    }
    scores = _scores(evidence, rule, measured, own)
    made: dict[Hotkey, Mark] = {}
    for miner in sorted(evidence.miners, key=lambda miner: miner.hotkey):
        hotkey = Hotkey(miner.hotkey)
        credit = measured.get(hotkey)
        if miner.reason == Reason.DUPLICATE:
            made[hotkey] = Mark(RoundOutcome.COPY)  # no fault: which of the two had it from the other, nobody knows
        elif not miner.admitted:
            blamed = RoundOutcome.EXCUSED if excused else RoundOutcome.FAULT
            made[hotkey] = Mark(blamed if miner.at_fault else RoundOutcome.UNHEARD)
        elif kept[hotkey] != hotkey:
            made[hotkey] = Mark(RoundOutcome.COPY, credit=credit, keeper=kept[hotkey])
        elif hotkey in own:
            made[hotkey] = Mark(RoundOutcome.OWN, scores.get(hotkey), credit)
        else:
            made[hotkey] = Mark(RoundOutcome.REPLAY, credit=credit)
    return made


def _replay(hotkey: Hotkey, evidence: Evidence, measured: Mapping[Hotkey, Credit], rule: Ranking) -> bool:
    """Whether it has no length, or hardly any outside of what is free."""
    if hotkey in measured:
        return measured[hotkey].own < rule.own
    return any(miner.hotkey == hotkey and miner.norm == 0.0 for miner in evidence.miners)


def _scores(
    evidence: Evidence, rule: Ranking, measured: Mapping[Hotkey, Credit], own: set[Hotkey]
) -> dict[Hotkey, float]:
    """What the rule compares, of those with a gradient of their own; what is not finite is left out."""
    if rule.score == "losses":
        trials = {Hotkey(t.hotkey): (t.before - t.after) / t.before for t in evidence.trials if t.before > 0.0}
        return _finite(trials, own)
    raw = {hotkey: credit.raw for hotkey, credit in measured.items()}
    if rule.score == "raw":
        return _finite(raw, own)
    if rule.score == "proven":
        mixed = {hotkey: credit.mixed for hotkey, credit in measured.items()}
        return {hotkey: max(0.0, score) for hotkey, score in _finite(mixed, own).items()}
    added = {hotkey: credit.added for hotkey, credit in measured.items()}
    if rule.score == "leave_one_out":
        added = leave_one_out(evidence, rule, sorted(own))
    return _finite({h: (1.0 - rule.blend) * value + rule.blend * raw[h] for h, value in added.items()}, own)


def _finite(scores: Mapping[Hotkey, float], own: set[Hotkey]) -> dict[Hotkey, float]:
    return {hotkey: score for hotkey, score in scores.items() if hotkey in own and math.isfinite(score)}
