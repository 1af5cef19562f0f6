"""From ratings to pay.

    score  = max(0, mu - CAUTION sigma) reliability share trusted
    pay    ∝ score^power presence, over the miners with `clean_rounds` rounds behind them; the shares sum to 1

Pay is convex in the score (power 2): one machine's work split among k hotkeys, each rated lower, earns less than under
one hotkey (Gauntlet, arXiv 2505.21684, pays by the same power). A miner is rated from its first round and paid from its
sixth: a new hotkey does not shed a bad rating for free.
"""

import math
from collections.abc import Sequence

from fedgpt2.config import Ranking
from fedgpt2.ranking.rating import Rating
from fedgpt2.ranking.reliability import Conduct

__all__ = ["U16_MAX", "pay", "pay_shares", "score", "to_u16"]

U16_MAX = 65535


def score(rating: Rating, conduct: Conduct, trusted: float) -> float:
    """The cautious rating times reliability, share of own gradients, and `trusted`, the factor of the audits.

    `trusted` applies to the whole rating: places won before the audits showed anything lose their value, too.
    """
    return max(0.0, rating.ordinal) * conduct.reliability.value(1.0) * conduct.share.value(1.0) * trusted


def pay(score: float, conduct: Conduct, rule: Ranking) -> float:
    """A miner's pay before normalisation; 0 for a newcomer."""
    if conduct.clean < rule.clean_rounds:
        return 0.0
    return float(score**rule.power) * conduct.presence.value(0.0)


def pay_shares(pays: Sequence[float]) -> list[float]:
    """Shares of the payout, sum 1; all 0 where nobody is paid. Raises ValueError for pay that is negative or NaN."""
    if not all(math.isfinite(each) and each >= 0.0 for each in pays):
        raise ValueError(f"pay must be finite and not negative, got {list(pays)}")
    largest = max(pays, default=0.0)
    if largest == 0.0:
        return [0.0] * len(pays)
    total = math.fsum(each / largest for each in pays)
    return [each / largest / total for each in pays]


def to_u16(shares: Sequence[float]) -> list[int]:
    """Weights as a chain takes them: the largest is 65535, the others in proportion, rounded.

    Equal to what bittensor's `set_weights` makes of the shares (it leaves out zeros, and refuses when all are 0).
    """
    largest = max(shares, default=0.0)
    return [round(share / largest * U16_MAX) if largest > 0.0 else 0 for share in shares]
