"""From ratings to pay.

    score  = max(0, mu - caution sd) reliability share trusted
    weight ~ score^power presence, over the miners with `clean_rounds` rounds behind them; the weights sum to 1

Pay is convex in the score (power 2): splitting one machine's work among k identities, each seen to be worse, pays less
than doing it as one (Gauntlet, arXiv 2505.21684, pays by the same power). A newcomer is rated from its first round
and paid from its sixth: a bad name cannot be thrown off for free.
"""

import math
from collections.abc import Sequence

from fedgpt2.config import Ranking
from fedgpt2.ranking.rating import Rating
from fedgpt2.ranking.reliability import Conduct

__all__ = ["U16_MAX", "merit", "pay", "to_u16", "weights"]

U16_MAX = 65535


def merit(rating: Rating, conduct: Conduct, trusted: float, rule: Ranking) -> float:
    """The score: what is surely believed of a miner, as far as it can be relied on and does its own work.

    `trusted` is what part of its credit audits leave it (audit.py): what was won before they told counts no more.
    """
    ordinal = max(0.0, rating.ordinal(rule.caution))
    return ordinal * conduct.reliability.value(1.0) * conduct.share.value(1.0) * trusted


def pay(score: float, conduct: Conduct, rule: Ranking) -> float:
    """What a miner earns, before the whole is made 1; 0 in the shadow tier."""
    if conduct.clean < rule.clean_rounds:
        return 0.0
    return float(score**rule.power) * conduct.presence.value(0.0)


def weights(pays: Sequence[float]) -> list[float]:
    """Shares of the whole; all 0 where nobody is paid. Raises ValueError for one that is negative or not finite."""
    if not all(math.isfinite(each) and each >= 0.0 for each in pays):
        raise ValueError(f"pay must be finite and not negative, got {list(pays)}")
    largest = max(pays, default=0.0)
    if largest == 0.0:
        return [0.0] * len(pays)
    total = math.fsum(each / largest for each in pays)
    return [each / largest / total for each in pays]


def to_u16(shares: Sequence[float]) -> list[int]:
    """As a chain takes them: the largest is 65535, the rest in proportion, rounded.

    The same numbers bittensor's `set_weights` makes of the floats (it leaves out the zeros); it refuses when all are 0.
    """
    largest = max(shares, default=0.0)
    return [round(share / largest * U16_MAX) if largest > 0.0 else 0 for share in shares]
