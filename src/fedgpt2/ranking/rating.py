"""A miner's rating: mean and standard deviation of its quality, estimated from its places in rounds.

Plackett and Luce's model of rankings, updated online: Weng and Lin, "A Bayesian approximation method for online
ranking", JMLR 12 (2011), algorithm 4, by openskill. With c² = sum over q of (sigma_q² + BETA²)

    p_iq = exp(mu_i / c) / sum of exp(mu_s / c) over all s of no better place than q
    mu_i += (sigma_i² / c) sum over q of no worse place than i of (1[q = i] - p_iq) / ties_q
    sigma_i² *= max(1 - gamma (sigma_i² / c²) sum over the same q of p_iq (1 - p_iq) / ties_q, 1e-4)

after sigma_i² has grown by tau², the drift of a round. Only places count: one huge score gains nothing.

gamma is 1. The paper leaves it open; openskill takes sigma_i / c, which falls with the root of the number of miners, so
that ratings of twelve equally good miners hardly settle (docs/ranking.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openskill.models import PlackettLuce

from fedgpt2.types import Hotkey

__all__ = ["BETA", "CAUTION", "INITIAL", "MU", "SIGMA", "Rating", "places", "update_ratings"]

MU, SIGMA = 25.0, 25 / 3  # of a miner that was never compared
BETA = 25 / 6  # standard deviation of one round's performance
CAUTION = 3.0  # standard deviations subtracted from a rating before pay


@dataclass(frozen=True)
class Rating:
    """Mean and standard deviation of a miner's estimated quality."""

    mu: float
    sigma: float

    @property
    def ordinal(self) -> float:
        """The mean less CAUTION standard deviations: the part that pay counts."""
        return self.mu - CAUTION * self.sigma


INITIAL = Rating(MU, SIGMA)


def update_ratings(
    ratings: Mapping[Hotkey, Rating], scores: Mapping[Hotkey, float], last: Sequence[Hotkey], tau: float
) -> dict[Hotkey, Rating]:
    """The ratings after a round: the highest score comes first, equal scores tie, the miners in `last` tie last.

    Returns only the miners compared; none where fewer than two took part or nobody has a score. Raises ValueError for a
    score that is not finite: openskill would take NaN for a good one.
    """
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"scores must be finite, got {dict(scores)}")
    miners = sorted({*scores, *last})
    if len(miners) < 2 or not scores:
        return {}
    reached = places(scores, last)
    model = PlackettLuce(mu=MU, sigma=SIGMA, beta=BETA, tau=tau, gamma=_gamma)
    teams = [[model.rating(mu=ratings[miner].mu, sigma=ratings[miner].sigma)] for miner in miners]
    rated = model.rate(teams, ranks=[float(reached[miner]) for miner in miners])
    return {miner: Rating(team[0].mu, team[0].sigma) for miner, team in zip(miners, rated, strict=True)}


def _gamma(*_: object) -> float:
    return 1.0


def places(scores: Mapping[Hotkey, float], last: Sequence[Hotkey]) -> dict[Hotkey, int]:
    """1 for the highest score; equal scores share a place and skip as many; the miners in `last` share the last one."""
    ordered = sorted(scores.values(), reverse=True)
    first = {score: place for place, score in reversed(list(enumerate(ordered, 1)))}
    reached = {hotkey: first[score] for hotkey, score in scores.items()}
    return {**reached, **dict.fromkeys(last, len(ordered) + 1)}
