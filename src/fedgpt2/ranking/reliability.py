"""Whether a miner can be relied on, whether its gradients are its own, and how often it is there.

Each is a mean over its rounds in which later ones weigh more, of what a round says: 1, 0 or nothing.

    reliability   1 admitted (in whichever way), 0 refused or late by its own fault; nothing where the link or the
                  validator failed, or the round was bad as a whole
    share         1 a gradient of its own, 0 a copy of one committed earlier, or a replay; of k hotkeys that send one
                  gradient one has 1, so their shares sum to 1 at most
    presence      1 a gradient of its own, 0 none, asked for or not; nothing in a round that was bad as a whole

Presence is no penalty: pay is for gradients delivered, and one machine that answers now under one hotkey and now
under another is paid for one.
"""

from dataclasses import dataclass, replace

from fedgpt2.ranking.marks import Mark, RoundOutcome

__all__ = ["Average", "Conduct", "observe"]


@dataclass(frozen=True)
class Average:
    """Exponentially weighted mean, each value over one `1 / rounds` newer; unbiased from the first value on."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, rounds: int) -> "Average":
        """With one more value; `rounds` is the time over which the past fades to 1/e."""
        newest = 1.0 / max(1, rounds)
        return Average((1.0 - newest) * self.total + newest * value, (1.0 - newest) * self.weight + newest)

    def value(self, empty: float) -> float:
        """The mean; `empty` before the first value."""
        return self.total / self.weight if self.weight else empty


@dataclass(frozen=True)
class Conduct:
    """How a miner has behaved so far."""

    reliability: Average = Average()
    share: Average = Average()
    presence: Average = Average()
    clean: int = 0  # rounds with a gradient of its own
    refusals: int = 0  # rounds lost by its own fault, excused or not
    orders: int = 0  # rounds in which it was given an order


_RELIABLE = {
    RoundOutcome.OWN: 1.0,
    RoundOutcome.COPY: 1.0,
    RoundOutcome.REPLAY: 1.0,
    RoundOutcome.FAULT: 0.0,
}
_SHARE = {RoundOutcome.OWN: 1.0, RoundOutcome.COPY: 0.0, RoundOutcome.REPLAY: 0.0}


def observe(conduct: Conduct, mark: Mark | None, memory: int, *, bad_round: bool) -> Conduct:
    """The conduct after a round; `mark` is None for a miner that was given no order."""
    own = mark is not None and mark.verdict is RoundOutcome.OWN
    if own or not bad_round:
        conduct = replace(conduct, presence=conduct.presence.add(1.0 if own else 0.0, memory))
    if mark is None:
        return conduct
    if mark.verdict in _RELIABLE:
        conduct = replace(conduct, reliability=conduct.reliability.add(_RELIABLE[mark.verdict], memory))
    if mark.verdict in _SHARE:
        conduct = replace(conduct, share=conduct.share.add(_SHARE[mark.verdict], memory))
    return replace(
        conduct,
        clean=conduct.clean + own,
        refusals=conduct.refusals + (mark.verdict in (RoundOutcome.FAULT, RoundOutcome.EXCUSED)),
        orders=conduct.orders + 1,
    )
