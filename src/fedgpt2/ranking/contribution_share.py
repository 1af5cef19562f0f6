"""How much of a miner's score counts, by the average contribution of its own in its rounds so far.

    c_i = <g, x'_i> / |x_i|, or <g, x_i> / |x_i| where that is below 0 and less    contribution of a round (credit.py)
    a_i = clip(c_i / |g|, -b, b)         b = max(BOUND median of N, FLOOR_BOUND); 1 before the first value
    N_i = exponential mean of a_i over the miner's measured rounds (`ranking.memory`); a replay counts as 0
    share_i = clip((N_i / max(median of N, FLOOR) - LEAST) / (FULL - LEAST), 0, 1)      median over the miners compared
    score_i = max(0, (<g, x_i> / |x_i| + 2 c_i) / 3) share_i authenticity_i             (data_authenticity.py)

The whole effect <g, x> / |x| of one round orders honest miners best, but values a replay of the last aggregate almost
as highly; the contribution values replays at 0, but is noisy in a single round. Hence a third of the one and two
thirds of the other are compared, and they count in proportion to the average contribution. Dividing by |g| makes
rounds comparable. The share never exceeds 1.

FULL is below the median because half of all honest miners are, by chance. LEAST leaves little to a miner that mixes a
small gradient into a replay. Dividing by the whole |x| limits a_i to the residual fraction, so a distorted replay (its
largest entries, some tensors scaled) gains no more than the part of its length that is no replay. A step that raises
the loss counts against its sender. BOUND limits the effect of a single round, because in an unsteady one an honest
gradient may point anywhere. A median below FLOOR, or below 0, is replaced by FLOOR: a ratio of two rounding errors
means nothing.
"""

import math
from collections.abc import Collection, Mapping
from statistics import median

from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome
from fedgpt2.types import Hotkey

__all__ = ["BOUND", "FLOOR", "FLOOR_BOUND", "FULL", "LEAST", "bound", "contribution_shares", "round_contribution"]

# In units of |g|: a hundred times the rounding error of inner products (2e-6 of the lengths) after a projection onto
# well separated vectors. Honest gradients have hundredths and more.
FLOOR = 1e-3
LEAST, FULL = 3 / 8, 3 / 4  # of the median: share 0 up to the one, 1 from the other on
BOUND = 2.0  # of the median: largest value of one round, either way
FLOOR_BOUND = 0.05  # of |g|: the bound where the median is lower, so that a low median can rise


def round_contribution(outcome: MinerOutcome, gradient_norm: float) -> float | None:
    """a_i before the bound, -1 to 1; None for a copy, without a contribution, and where nothing was measured."""
    if outcome.verdict is RoundOutcome.REPLAY:
        return 0.0
    if outcome.verdict is not RoundOutcome.OWN or outcome.credit is None or not gradient_norm > 0.0:
        return None
    value = outcome.credit.contribution / gradient_norm
    return min(1.0, max(-1.0, value)) if math.isfinite(value) else None


def bound(averages: Collection[float]) -> float:
    """b, from the averages before the round of the miners compared."""
    return max(BOUND * median(averages), FLOOR_BOUND) if averages else 1.0


def contribution_shares(averages: Mapping[Hotkey, float]) -> dict[Hotkey, float]:
    """The share of each miner compared, 0 to 1, by their averages N."""
    if not averages:
        return {}
    middle = max(median(averages.values()), FLOOR)
    return {hotkey: min(1.0, max(0.0, (each / middle - LEAST) / (FULL - LEAST))) for hotkey, each in averages.items()}
