"""The orders that simulated miners work on in one round: answers as they are computed, bodies one after the other."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from fedgpt2.errors import PeerError, Reason, Refused
from fedgpt2.link.blobs import Blob
from fedgpt2.link.memory import Answer, seal_unsigned
from fedgpt2.protocol.messages import Contribution, Order
from fedgpt2.types import Digest, Hotkey, WorkId

__all__ = ["RoundWork", "Work"]


class Work:
    """One miner's work on one order."""

    def __init__(self, index: int, order: Order, name: WorkId, ended: Callable[[], None]) -> None:
        """`index` of the miner; `ended` is called when nobody waits for the answer any more."""
        self.index = index
        self.order = order
        self.work_id = name
        self.claimed_loss: float | None = None  # where there is an answer
        self._ended = ended
        self._envelope: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._body: Blob | None = None
        self._failure: PeerError | None = None
        self._turn, self._over = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[Answer]:
        """The answer, as `link.memory.MemoryMiner.work` gives it."""
        try:
            yield Answer(await self._envelope, self._send)
        finally:
            self._over.set()
            self._ended()

    async def _send(self) -> Blob:
        await self._turn.wait()
        if self._body is None:
            raise Refused(Reason.UNKNOWN_BLOB, "there is no answer")
        return self._body

    def computed(self, contribution: Contribution, body: Blob) -> None:
        """Answer with this contribution; its body follows in its turn."""
        self.claimed_loss, self._body = contribution.claimed_loss, body
        if not self._envelope.done():  # else the order was cancelled
            self._envelope.set_result(seal_unsigned("contribution", contribution, Hotkey(self.order.receiver)))

    def failed(self, failure: PeerError) -> None:
        """There is no answer; that shows when it would have been this one's turn."""
        self._failure = failure

    async def take_turn(self) -> None:
        """Send the body, or fail; returns when it is received, refused or not wanted any more."""
        if self._failure is not None:
            self.break_off(self._failure)
        self._turn.set()
        await self._over.wait()
        await asyncio.sleep(0)  # whoever waits for this order hears of it before the next one is sent

    def break_off(self, error: BaseException) -> None:
        """Raise `error` where the answer is waited for."""
        if not self._envelope.done():
            self._envelope.set_exception(error)


class RoundWork:
    """All orders of one round. `halt` is set when none of their answers is waited for any more."""

    def __init__(self, blobs: Mapping[Digest, Blob]) -> None:
        """`blobs` are those that the orders name."""
        self.blobs = blobs
        self.works: list[Work] = []
        self.halt = threading.Event()
        self._waited_for = 0

    def add(self, index: int, order: Order, name: WorkId) -> Work:
        """Take in one more order."""
        work = Work(index, order, name, self._ended)
        self.works.append(work)
        self._waited_for += 1
        return work

    def finished(self, task: asyncio.Task[None]) -> None:
        """Pass on the error that ended the task which worked on the round, if one did."""
        if not task.cancelled() and (error := task.exception()) is not None:
            for work in self.works:
                work.break_off(error)

    def _ended(self) -> None:
        self._waited_for -= 1
        if not self._waited_for:
            self.halt.set()
