"""A miner's conduct: how reliably it delivers, which part of its gradients is its own, and how often it takes part.

Each is an exponentially weighted mean over rounds of 1, 0 or no value:

    reliability   1 admitted (own, copy or replay), 0 refused or late by its own fault; no value where the link or the
                  validator failed, or the failure was common to most miners
    share         1 own gradient, 0 copy of a gradient committed earlier, or replay; of k hotkeys that send one gradient
                  one gets 1, so their shares sum to at most 1
    presence      1 own gradient, 0 none, with or without an order; no value in a round of a common failure

Presence is no penalty: pay is for delivered gradients, and a machine that alternates between two hotkeys is paid for
one.
"""

from dataclasses import dataclass, replace

from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome

__all__ = ["Average", "Conduct", "update_conduct"]


@dataclass(frozen=True)
class Average:
    """Exponentially weighted mean, unbiased from the first value on."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, rounds: int) -> "Average":
        """The mean with one more value; older values fade to 1/e within `rounds` further ones."""
        newest = 1.0 / max(1, rounds)
        return Average((1.0 - newest) * self.total + newest * value, (1.0 - newest) * self.weight + newest)

    def value(self, empty: float) -> float:
        """The mean; `empty` before the first value."""
        return self.total / self.weight if self.weight else empty


@dataclass(frozen=True)
class Conduct:
    """What a miner's rounds so far show, and their counts."""

    reliability: Average = Average()
    share: Average = Average()
    presence: Average = Average()
    clean: int = 0  # rounds with a gradient of its own
    refusals: int = 0  # rounds lost by its own fault, excused or not
    orders: int = 0  # rounds in which it had an order


_RELIABLE = {
    RoundOutcome.OWN: 1.0,
    RoundOutcome.COPY: 1.0,
    RoundOutcome.REPLAY: 1.0,
    RoundOutcome.FAULT: 0.0,
}
_SHARE = {RoundOutcome.OWN: 1.0, RoundOutcome.COPY: 0.0, RoundOutcome.REPLAY: 0.0}


def update_conduct(conduct: Conduct, outcome: MinerOutcome | None, memory: int, *, common_failure: bool) -> Conduct:
    """The conduct after a round; `outcome` is None for a miner without an order."""
    own = outcome is not None and outcome.verdict is RoundOutcome.OWN
    if own or not common_failure:
        conduct = replace(conduct, presence=conduct.presence.add(1.0 if own else 0.0, memory))
    if outcome is None:
        return conduct
    if outcome.verdict in _RELIABLE:
        conduct = replace(conduct, reliability=conduct.reliability.add(_RELIABLE[outcome.verdict], memory))
    if outcome.verdict in _SHARE:
        conduct = replace(conduct, share=conduct.share.add(_SHARE[outcome.verdict], memory))
    return replace(
        conduct,
        clean=conduct.clean + own,
        refusals=conduct.refusals + (outcome.verdict in (RoundOutcome.FAULT, RoundOutcome.EXCUSED)),
        orders=conduct.orders + 1,
    )
