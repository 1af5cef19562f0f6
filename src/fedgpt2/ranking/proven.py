"""What a miner has proved, on average, to add of its own, and how much of its credit counts for that.

    c_i = <g, x'_i> / |x_i|                              what it adds of its own, in a round; 0 for a replay;
                                                         <g, x_i> / |x_i| where that is below 0 and less
    a_i = clip(c_i / |g|, -b, b)                         b = max(BOUND median of N, UNTOLD), 1 at the start
    N_i = mean of a_i over its rounds, later ones more   (`ranking.memory`)
    share_i = clip((N_i / max(median of N, FLOOR) - LEAST) / (FULL - LEAST), 0, 1)  the median over those compared
    score_i = max(0, <g, x_i> / |x_i| + 2 c_i) / 3 share_i grounded_i                grounded_i: audit.py

The whole effect <g, x> / |x| of one round orders honest miners best, and pays a replay of the last aggregate nearly as
much; what is left outside of what is free pays no replay, but is noisy in a single round. So a third of the one and
two of the other are compared, and count the more, the nearer the miner is known to come to what the median adds of its
own. That is taken as a part of |g|, so that the gradient's length does not weigh. Nobody gains beyond a share of 1.

FULL is below the median, for half of all honest miners are, by chance. Room for padding is the price: free vectors
mixed into honest work raise the whole effect, and the share does not fall at once. They lower what is added, and their
negatives the other way round; a third to two thirds is where neither is worth much (docs/ranking.md).

LEAST leaves little to a scrap of the text behind a replay.

a_i is by the whole |x|, so a replay that was bent (its largest entries, some tensors louder) proves no more than the
part of its length that is no replay: a_i <= |x'_i| / |x_i|. By |x'| its proof would be that of a full length. Free
vectors that shorten x raise a_i a little; the share stays 1 at most, and <g, x> / |x| is without what they were worth.

What harms counts against its sender: a step that raises the loss, but less than its free part would, adds something and
helped nobody. And no single round, good or bad, says more than BOUND: in an unsteady one honest gradients may point
anywhere.

Nothing is had from a division of rounding errors: a median below FLOOR, or below 0, is taken for FLOOR. Where nobody
adds anything of its own, shares and scores are 0.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from statistics import median

from fedgpt2.ranking.marks import Mark, RoundOutcome
from fedgpt2.types import Hotkey

__all__ = ["BOUND", "FLOOR", "FULL", "LEAST", "UNTOLD", "bound", "proof", "shares", "weighed"]

# Of |g|: a hundred times what the errors of inner products (2e-6 of the lengths) may make of nothing, where the free
# vectors are well apart; honest gradients have hundredths and more.
FLOOR = 1e-3
LEAST, FULL = 3 / 8, 3 / 4  # of the median: no share up to the one, all of it from the other on
BOUND = 2.0  # of the median: no single round says more, either way, than this,
UNTOLD = 0.05  # of |g|, or this: else a low median would hold down what raises it


def proof(mark: Mark, gradient_norm: float) -> float | None:
    """What the round says of a miner's own, -1 to 1; None where it says nothing.

    It says nothing of a copy, of what was refused or did not come, and of what was not measured.
    """
    if mark.verdict is RoundOutcome.REPLAY:
        return 0.0
    if mark.verdict is not RoundOutcome.OWN or mark.credit is None or not gradient_norm > 0.0:
        return None
    value = mark.credit.counted / gradient_norm
    return min(1.0, max(-1.0, value)) if math.isfinite(value) else None


def bound(proven: Collection[float]) -> float:
    """The most that one more round may say, either way, by what those compared have proved before it."""
    return max(BOUND * median(proven), UNTOLD) if proven else 1.0


def shares(proven: Mapping[Hotkey, float]) -> dict[Hotkey, float]:
    """What part of its credit counts for each miner compared, 0 to 1, by what each has proved; one alone too."""
    if not proven:
        return {}
    middle = max(median(proven.values()), FLOOR)
    return {hotkey: min(1.0, max(0.0, (each / middle - LEAST) / (FULL - LEAST))) for hotkey, each in proven.items()}


def weighed(
    marks: Mapping[Hotkey, Mark], proven: Mapping[Hotkey, float], trusted: Mapping[Hotkey, float]
) -> dict[Hotkey, Mark]:
    """The marks, each score times its share and its grounding (audit.py), by all that is known, this round included.

    A miner with a score and nothing proved has no share: none of its credit counts.
    """
    compared = [hotkey for hotkey, mark in marks.items() if mark.score is not None]
    parts = shares({hotkey: proven.get(hotkey, 0.0) for hotkey in compared})
    factors = {hotkey: part * trusted.get(hotkey, 1.0) for hotkey, part in parts.items()}
    return {
        hotkey: mark if mark.score is None else replace(mark, score=mark.score * factors[hotkey])
        for hotkey, mark in marks.items()
    }
