"""The life of one order: blobs arrive, text is read, the gradient computed, the answer signed and kept.

Computing runs in a daemon thread with a stop flag; the event loop never waits for torch.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from fedgpt2.errors import PeerError, Reason, Refused
from fedgpt2.event_loop import off_loop
from fedgpt2.identity.signing import Signer
from fedgpt2.link.blobs import Blob
from fedgpt2.miner.delivery import Delivery, StateDelivery
from fedgpt2.miner.orders import Plan
from fedgpt2.miner.packer import AnswerEncoder, ComputeResult
from fedgpt2.miner.work import MinerCorpus, Trainer, Windows
from fedgpt2.protocol.messages import Accepted, Contribution, Envelope, Failure

__all__ = ["Answer", "Job", "MinerContext"]

T = TypeVar("T")

_PASSING = frozenset({Reason.CANCELLED, Reason.TIMED_OUT, Reason.LATE})  # failures of a moment, not of the order


@dataclass(frozen=True)
class MinerContext:
    """What every job of a miner works with."""

    signer: Signer
    library: MinerCorpus
    workshop: Trainer
    packer: AnswerEncoder


@dataclass(frozen=True)
class Answer:
    """A signed answer: a contribution with its blob, or a failure."""

    envelope: Envelope
    outcome: ComputeResult | None = None
    blob: Blob | None = None
    failure: PeerError | None = None

    @property
    def lasting(self) -> bool:
        """Whether the same order asked again gets this answer again; otherwise it is worked on again."""
        return self.failure is None or self.failure.reason not in _PASSING


class Job:
    """One order being worked on, then its answer."""

    def __init__(
        self,
        plan: Plan,
        tools: MinerContext,
        manifest: Delivery,
        state: StateDelivery,
        *,
        before_compute: Callable[[], None],
        done: Callable[["Job", Answer], None],
    ) -> None:
        """`before_compute` is called when the gradient buffer is about to be overwritten; `done` with the answer."""
        self.plan = plan
        self.blobs = {delivery.ref.digest: delivery for delivery in (manifest, state)}
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.touched = time.monotonic()
        self._tools = tools
        self._manifest = manifest
        self._state = state
        self._before_compute = before_compute
        self._done = done
        self._stop = threading.Event()
        self._computing = False
        self._given_up = False
        self._readers: set[asyncio.Transport] = set()
        self.task = asyncio.create_task(self._run(), name="job")

    @property
    def answered(self) -> Answer | None:
        """The answer, once there is one."""
        return self.answer.result() if self.answer.done() else None

    @property
    def standing(self) -> bool:
        """Whether the same order asked again is this job; not after it was called off or ran out of time."""
        return not self._given_up and (self.answered is None or self.answered.lasting)

    @property
    def computing(self) -> bool:
        """Whether it is at its gradient."""
        return self._computing and self.answered is None

    @property
    def heard(self) -> float:
        """When its validator was last heard of, by the monotonic clock: a request, or a byte of a blob."""
        if self._readers:
            return time.monotonic()
        return max(self.touched, *(delivery.incoming.moved for delivery in self.blobs.values()))

    def accepted(self) -> Accepted:
        """What a validator that asks for this work is told: the blobs that have not arrived, the small one first."""
        lacks = [delivery.lack() for delivery in (self._manifest, self._state)] if self.answered is None else []
        return Accepted(work_id=self.plan.work_id, lacks=tuple(lack for lack in lacks if lack is not None))

    def give_up(self) -> None:
        """Call the work off; `task` ends when the computation has, within a block's time. The answer is a failure."""
        if not self._given_up and not self.task.done():
            self.task.cancel()
        self._given_up = True

    @contextmanager
    def read_by(self, transport: asyncio.Transport | None) -> Iterator[Blob]:
        """The answer's blob, while somebody reads it over `transport`."""
        if transport is None or self.answered is None or self.answered.blob is None:
            raise Refused(Reason.CUT_OFF, "the connection or the answer is gone")
        self._readers.add(transport)
        try:
            yield self.answered.blob
        finally:
            self._readers.discard(transport)
            self.touched = time.monotonic()

    def cut_readers(self) -> None:
        """Close the connections that read the blob: its memory is about to change."""
        for transport in self._readers:
            transport.abort()

    async def _run(self) -> None:
        answer = self._failed(Refused(Reason.CANCELLED, "the order was called off"))
        try:
            answer = await self._answer_in_time()
        finally:
            self.answer.set_result(answer)
            self._done(self, answer)

    async def _answer_in_time(self) -> Answer:
        budget = self.plan.budget_seconds
        try:
            async with asyncio.timeout(budget):
                return await self._work()
        except TimeoutError:
            if self._computing:
                return self._failed(Refused(Reason.LATE, f"not computed within {budget:g} s"))
            return self._failed(Refused(Reason.TIMED_OUT, f"state or text was not here within {budget:g} s"))
        except PeerError as error:
            return self._failed(error)

    async def _work(self) -> Answer:
        await self._manifest.arrived.wait()
        manifest = bytes(self._manifest.blob.data)
        windows = await _abandonable(self._tools.library.windows, self.plan, manifest)
        await self._state.arrived.wait()
        self._computing = True
        self._before_compute()
        outcome, contribution, blob = await self._until_stopped(self._compute, windows)
        return Answer(self._tools.signer.seal("contribution", contribution), outcome, blob)

    def _compute(self, windows: Windows) -> tuple[ComputeResult, Contribution, Blob]:
        """In the worker thread."""
        gradient = self._state.memory.gradient
        outcome = self._tools.workshop.compute(self.plan, self._state.weights(), windows, gradient, self._stop)
        if self._stop.is_set():
            raise Refused(Reason.CANCELLED, "the order was called off")
        contribution, blob = self._tools.packer.pack(self.plan.order, self.plan.work_id, outcome, gradient)
        return outcome, contribution, blob

    async def _until_stopped(self, function: Callable[[Windows], T], windows: Windows) -> T:
        """Result of the thread; cancellations are passed on to it and wait for its end, for it uses our buffers."""
        thread = asyncio.ensure_future(off_loop(function, windows))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._stop.set()
            await _ended(thread)
            raise

    def _failed(self, error: PeerError) -> Answer:
        order = self.plan.order
        failure = Failure(
            run_id=order.run_id,
            round=order.round,
            work_id=self.plan.work_id,
            sender=order.receiver,
            receiver=order.sender,
            reason=error.reason.value,
            detail=error.detail,
        )
        return Answer(self._tools.signer.seal("failure", failure), failure=error)


async def _ended(thread: "asyncio.Future[T]") -> None:
    """Wait for the end of a thread through every further cancellation: the budget and a validator send one each.

    Only the end of the program, which cancels `thread` as well, does not wait for it.
    """
    while not thread.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({thread})
    if not thread.cancelled():
        thread.exception()  # seen: it is the cancellation itself, or came too late to matter


async def _abandonable(function: Callable[[Plan, bytes, threading.Event], T], plan: Plan, manifest: bytes) -> T:
    """Result of a thread that touches nothing of ours: a cancellation tells it, and does not wait for its end."""
    stop = threading.Event()
    thread = asyncio.ensure_future(off_loop(function, plan, manifest, stop))
    thread.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    try:
        return await asyncio.shield(thread)
    finally:
        stop.set()
