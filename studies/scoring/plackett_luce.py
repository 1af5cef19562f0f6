"""Plackett-Luce ratings of many simulations at once: openskill's arithmetic on arrays.

Weng, Lin, "A Bayesian Approximation Method for Online Ranking", JMLR 12, 2011, algorithm 4, with one player a team;
a test compares it with `openskill.models.PlackettLuce`.

Letters: s simulations, r rounds, n players.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rating", "kendall", "rate"]

Float64 = NDArray[np.float64]
_KAPPA = 1e-4  # least factor of a variance in one match


@dataclass(frozen=True)
class Rating:
    """Settings of the rating, in openskill's units; the defaults are openskill's.

    `damped`: gamma = sigma / c, as openskill; otherwise gamma = 1.
    """

    beta: float = 25.0 / 6.0
    tau: float = 25.0 / 300.0
    mu: float = 25.0
    sigma: float = 25.0 / 3.0
    damped: bool = True


def rate(scores: Float64, settings: Rating = Rating()) -> tuple[Float64, Float64]:
    """Means and deviations [s, r, n] after each round of `scores` [s, r, n]; NaN marks an absent player."""
    mu = np.full((len(scores), scores.shape[2]), settings.mu)
    variance = np.full_like(mu, settings.sigma**2)
    history = [_match(scores[:, r], mu, variance, settings) for r in range(scores.shape[1])]
    return np.stack([h[0] for h in history], 1), np.sqrt(np.stack([h[1] for h in history], 1))


def _match(scores: Float64, mu: Float64, variance: Float64, settings: Rating) -> tuple[Float64, Float64]:
    """One match of the players present: update `mu` and `variance` in place, return copies."""
    present = np.isfinite(scores)
    order = np.argsort(-np.where(present, scores, -np.inf), axis=1, kind="stable")
    here = np.take_along_axis(present, order, 1)
    spread = np.where(here, np.take_along_axis(variance, order, 1) + settings.tau**2, 0.0)
    c = np.sqrt(np.sum(spread + settings.beta**2 * here, axis=1, keepdims=True))
    strength = np.where(here, np.exp(np.take_along_axis(mu, order, 1) / c), 0.0)
    below = np.cumsum(strength[:, ::-1], axis=1)[:, ::-1]  # at place q: sum over the players at q or behind
    share = np.where(here, 1.0 / np.where(here, below, 1.0), 0.0)
    won = np.cumsum(share, axis=1) * strength  # of player i: sum of p_iq over the places q up to its own
    squares = np.cumsum(share**2, axis=1) * strength**2
    gain = np.where(here, 1.0 - won, 0.0) * spread / c
    gamma = np.sqrt(spread) / c if settings.damped else 1.0
    shrink = gamma * (won - squares) * spread / c**2
    np.put_along_axis(mu, order, np.take_along_axis(mu, order, 1) + gain, 1)
    narrowed = np.where(here, spread * np.maximum(1.0 - shrink, _KAPPA), np.take_along_axis(variance, order, 1))
    np.put_along_axis(variance, order, narrowed, 1)
    return mu.copy(), variance.copy()


def kendall(estimate: Float64, truth: Float64) -> Float64:
    """Kendall's tau-a of each row of `estimate` [s, n] with `truth` [n]; [s]."""
    first, second = np.triu_indices(len(truth), 1)
    agree = np.sign(estimate[:, first] - estimate[:, second]) * np.sign(truth[first] - truth[second])
    taus: Float64 = agree.mean(1)
    return taus
