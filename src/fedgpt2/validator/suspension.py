"""Miners that get no orders for a while: they took orders and let the deadline pass, gave up, or their link failed.

Each such failure costs every round its whole deadline, or the others the number that a robust rule needs, whether or
not it is the miner's fault. The first failure costs nothing; each repeated failure suspends the miner: 3 rounds, then
15, then 31. It takes two answers to make up for one failure, so a miner that answers every other round is suspended
too. Half or more of the miners that a robust rule aggregates are never suspended together: the round then lasts until
its deadline, and no remaining minority decides the model alone.
"""

from collections.abc import Iterable, Sequence

from fedgpt2.aggregation.combine import SMALLEST
from fedgpt2.errors import Reason
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.types import Hotkey
from fedgpt2.validator.peers import ConnectedMiner

__all__ = ["Suspensions"]

_FAILURE_POINTS = 2  # an answer takes one off
_MAX_POINTS = 7  # 31 rounds at a time
_DELAYS = frozenset({Reason.LATE, Reason.TIMED_OUT, Reason.CUT_OFF, Reason.UNREACHABLE})
_GIVES_UP = frozenset(  # in the miner's own words; ignored where more than half give up, which has a common cause
    {
        Reason.COMPUTE_FAILED,
        Reason.DATA_UNAVAILABLE,
        Reason.STALE_ORDER,
        Reason.WRONG_STATE,
        Reason.WRONG_MANIFEST,
        Reason.WRONG_ASSIGNMENT,
        Reason.UNSUPPORTED_VERSION,
        Reason.UNSUPPORTED_STRATEGY,
        Reason.UNSUPPORTED_CODEC,
        Reason.UNSUPPORTED_MODEL,
        Reason.UNKNOWN_WORK,
        Reason.BAD_MESSAGE,
        Reason.BAD_SIGNATURE,
        Reason.REPLAY,
        Reason.STALE_REQUEST,
        Reason.FORWARDED,
    }
)


class Suspensions:
    """The failure points of each miner, and the round until which it is suspended."""

    def __init__(self, records: Iterable[RoundRecord] = ()) -> None:
        self._points: dict[Hotkey, int] = {}
        self._until: dict[Hotkey, int] = {}  # the last round without an order
        for record in records:
            self.add(record)

    def add(self, record: RoundRecord) -> None:
        """Take in one more round."""
        common = 2 * sum(miner.reason in _GIVES_UP for miner in record.miners) > len(record.miners)
        failures = _DELAYS if common else _DELAYS | _GIVES_UP
        for miner in record.miners:
            points = self._points.pop(miner.hotkey, 0)
            if miner.reason in failures:
                points = min(points + _FAILURE_POINTS, _MAX_POINTS)
                self._until[miner.hotkey] = record.round + 2 ** (points - _FAILURE_POINTS) - 1
            elif miner.reason is None:
                points -= 1
                self._until.pop(miner.hotkey, None)  # it answered although it was suspended
            if points > 0:
                self._points[miner.hotkey] = points

    def active(self, miners: Sequence[ConnectedMiner], number: int, at_least: int) -> Sequence[ConnectedMiner]:
        """The miners that get an order in round `number`; all of them where fewer than `at_least` would remain.

        All of them, too, where a robust rule has enough miners and half or fewer would remain: otherwise two rounds
        without a link would leave the model to a minority.
        """
        active = [miner for miner in miners if number > self._until.get(miner.hotkey, 0)]
        majority = len(miners) // 2 + 1 if len(miners) >= SMALLEST else 1
        return active if len(active) >= max(majority, at_least) else miners
