"""Who is given no work for a while, because it took orders and let the deadline pass or gave up, or its link did.

Such a miner costs every round its whole deadline, or the others the number that a robust rule needs, be it a fault or
not: nobody can tell a slow link from a miner that reads slowly, nor a bad one from a miner that hangs up. A first
lapse costs it nothing; further ones that no answer comes between 3 rounds, 15, and then 31 each, and it takes two
answers to make up for one lapse: whoever answers every other round is found out as well. Half or more of those a robust
rule is for never sit out: then each round lasts until its deadline, and the model stays nobody's in particular.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from fedgpt2.aggregation.pipeline import SMALLEST
from fedgpt2.errors import Reason
from fedgpt2.link.base import ConnectedMiner
from fedgpt2.types import Hotkey

__all__ = ["Suspensions"]

_LAPSE = 2  # points for a lapse; an answer takes one off
_MOST = 7  # points: 31 rounds at a time
_HOLDS_UP = frozenset({Reason.LATE, Reason.TIMED_OUT, Reason.CUT_OFF, Reason.UNREACHABLE})
_GIVES_UP = frozenset(  # in its own words, whomever it blames; not where most do: that has a common cause
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


class _Miner(msgspec.Struct):
    hotkey: Hotkey
    reason: str | None


class _Row(msgspec.Struct):
    round: int
    miners: list[_Miner]


class Suspensions:
    """Points of every miner that let a deadline pass, and until when it sits out."""

    def __init__(self) -> None:
        self._points: dict[Hotkey, int] = {}
        self._until: dict[Hotkey, int] = {}  # the last round it is left out of

    def add(self, number: int, reasons: Mapping[Hotkey, str | None]) -> None:
        """Take in round `number`: for each miner that was given work, the reason it failed or was refused for."""
        common = 2 * sum(reason in _GIVES_UP for reason in reasons.values()) > len(reasons)
        lapses = _HOLDS_UP if common else _HOLDS_UP | _GIVES_UP
        for hotkey, reason in reasons.items():
            points = self._points.pop(hotkey, 0)
            if reason in lapses:
                points = min(points + _LAPSE, _MOST)
                self._until[hotkey] = number + 2 ** (points - _LAPSE) - 1
            elif reason is None:
                points -= 1
                self._until.pop(hotkey, None)  # of one that was asked although it had to sit out
            if points > 0:
                self._points[hotkey] = points

    def at_work(self, miners: Sequence[ConnectedMiner], number: int, at_least: int) -> Sequence[ConnectedMiner]:
        """The miners that get work in round `number`; all of them when fewer than `at_least` would be left.

        All of them, too, where a robust rule has enough and half or fewer would: two rounds without a link would hand
        the model to whoever was spared.
        """
        working = [miner for miner in miners if number > self._until.get(miner.hotkey, 0)]
        majority = len(miners) // 2 + 1 if len(miners) >= SMALLEST else 1
        return working if len(working) >= max(majority, at_least) else miners

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Suspensions":
        """What all the lines of rounds.jsonl make of it, one held at a time: points wait for a miner's next answer."""
        absences = cls()
        for line in lines:
            row = msgspec.json.decode(line, type=_Row)
            absences.add(row.round, {miner.hotkey: miner.reason for miner in row.miners})
        return absences
