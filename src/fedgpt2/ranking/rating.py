"""A miner's worth and how sure we are of it, from its places in rounds.

Plackett and Luce's model of rankings, updated online: Weng and Lin, "A Bayesian approximation method for online
ranking", JMLR 12 (2011), algorithm 4, by openskill. With c² = sum over q of (sd_q² + beta²)

    p_iq = exp(mu_i / c) / sum of exp(mu_s / c) over all s of no better place than q
    mu_i += (sd_i² / c) sum over q of no worse place than i of (1[q = i] - p_iq) / ties_q
    sd_i² *= max(1 - gamma (sd_i² / c²) sum over the same q of p_iq (1 - p_iq) / ties_q, 1e-4)

after sd_i² has grown by tau² for what may have changed since. Only places count: one huge score gains nothing.

gamma is 1. The paper leaves it open and takes sd_i / c, which falls with the root of the number of players: of twelve
the ratings would hardly settle, and some of equally good miners be worth nothing for long (docs/ranking.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openskill.models import PlackettLuce

from fedgpt2.config import Ranking
from fedgpt2.types import Hotkey

__all__ = ["Rating", "newcomer", "places", "play"]


@dataclass(frozen=True)
class Rating:
    """Mean and standard deviation of what is believed of a miner."""

    mu: float
    sigma: float

    def ordinal(self, caution: float) -> float:
        """What may be paid on: the mean less `caution` standard deviations."""
        return self.mu - caution * self.sigma


def newcomer(rule: Ranking) -> Rating:
    """The rating of a miner that has not played."""
    return Rating(rule.mu, rule.sigma)


def play(
    ratings: Mapping[Hotkey, Rating], scores: Mapping[Hotkey, float], losers: Sequence[Hotkey], rule: Ranking
) -> dict[Hotkey, Rating]:
    """The ratings after a round: higher scores come first, equal ones tie, `losers` share the last place.

    Only those who took part are in the answer; nobody is when fewer than two did, or nobody has a score. Raises
    ValueError for a score that is not finite: openskill would take NaN for a good one.
    """
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"scores must be finite, got {dict(scores)}")
    players = sorted({*scores, *losers})
    if len(players) < 2 or not scores:
        return {}
    reached = places(scores, losers)
    model = PlackettLuce(mu=rule.mu, sigma=rule.sigma, beta=rule.beta, tau=rule.tau, gamma=_gamma)
    teams = [[model.rating(mu=ratings[player].mu, sigma=ratings[player].sigma)] for player in players]
    rated = model.rate(teams, ranks=[float(reached[player]) for player in players])
    return {player: Rating(team[0].mu, team[0].sigma) for player, team in zip(players, rated, strict=True)}


def _gamma(*_: object) -> float:
    return 1.0


def places(scores: Mapping[Hotkey, float], losers: Sequence[Hotkey]) -> dict[Hotkey, int]:
    """1 for the highest score, equal ones share theirs, and as many are skipped; `losers` share the last."""
    ordered = sorted(scores.values(), reverse=True)
    first = {score: place for place, score in reversed(list(enumerate(ordered, 1)))}
    reached = {hotkey: first[score] for hotkey, score in scores.items()}
    return {**reached, **dict.fromkeys(losers, len(ordered) + 1)}
