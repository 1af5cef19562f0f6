"""The miner: which order it works on, which answers it keeps, what it remembers. No HTTP.

One order at a time. A newer order of the same validator replaces the older one; another validator waits its turn.
An answer is kept until its receipt, or until the gradient buffer is needed for the next one.
"""

import asyncio
import time
from collections.abc import Callable

from fedgpt2.config import MinerLimits
from fedgpt2.errors import Reason, Refused, printable
from fedgpt2.event_loop import off_loop
from fedgpt2.identity.signing import open_envelope
from fedgpt2.miner.delivery import BlobCache, Delivery
from fedgpt2.miner.job import Answer, Job, MinerContext
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.orders import Plan, check_age, check_order
from fedgpt2.model.hardware import physical_memory
from fedgpt2.protocol.digests import work_id
from fedgpt2.protocol.messages import Accepted, Envelope, Order, Receipt, WorkStatus
from fedgpt2.types import Hotkey, ModelShape

__all__ = ["Miner"]

_STOP_SECONDS = 3.0  # a computation ends within a block's time; what does not (somebody's plugin) keeps us busy
_HOLD_SECONDS = 60.0  # how long a validator may be silent before another's order takes the place of its own


class Miner:
    """What a miner does for authenticated callers; every method runs on the event loop."""

    def __init__(
        self,
        tools: MinerContext,
        journal: OrderJournal,
        limits: MinerLimits,
        say: Callable[[str], None],
        only: ModelShape | None = None,
    ) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # gets what ends the program
        self._tools = tools
        self._journal = journal
        self._limits = limits
        self._only = only
        self._say = say
        self._shelf = BlobCache(limits)
        self._memory = physical_memory()
        self._current: Job | None = None
        self._previous: Job | None = None  # answered, not receipted, its gradient still in the buffer
        self._turn = asyncio.Lock()
        self._closing = False

    @property
    def hotkey(self) -> Hotkey:
        """Who this miner is."""
        return self._tools.signer.hotkey

    def fail(self, error: BaseException) -> None:
        """End the program with this error."""
        if not self.failed.done():
            self.failed.set_exception(error)

    async def take(self, envelope: Envelope, caller: Hotkey) -> Accepted:
        """Take an order on, or find it taken. Raises Refused with the reason, ProtocolError for what is no order.

        Whatever the order says is checked before anything is remembered or allocated for it.
        """
        order = open_envelope(envelope, "order", Order, signer=caller)
        name = work_id(envelope.payload)
        plan = check_order(order, name, me=self.hotkey, limits=self._limits, memory=self._memory, only=self._only)
        async with self._turn:
            current = self._current
            if current is None or current.plan.work_id != name or not current.standing:
                check_age(order, name, await off_loop(self._journal.newest, order))
                await self._make_room(caller)
                current = await self._begin(plan)
            current.touched = time.monotonic()
            return current.accepted()

    async def wait(self, work: str, caller: Hotkey, seconds: float) -> WorkStatus:
        """The answer to an order, or pending after `seconds`. Raises Refused: unknown_work; cut_off while closing."""
        job = self._job(work, caller)
        job.touched = time.monotonic()
        await asyncio.wait({job.answer}, timeout=seconds)
        job.touched = time.monotonic()  # it has been listening
        if job.answered is None:
            return WorkStatus(state="pending")
        if self._closing and job.answered.blob is None:  # given up with us: no failure of the work's own
            raise _ending()
        return WorkStatus(state="done", answer=job.answered.envelope)

    async def cancel(self, work: str, caller: Hotkey) -> None:
        """Call an order off and forget it. Raises Refused(unknown_work)."""
        job = self._job(work, caller)
        await self._drop(job)

    def delivery(self, digest: str, caller: Hotkey) -> Delivery:
        """The blob of the current order that `digest` names.

        Raises Refused: unknown_blob, or the reason the order has already failed for.
        """
        job = self._current
        if job is None or job.plan.order.sender != caller or digest not in job.blobs:
            raise Refused(Reason.UNKNOWN_BLOB, f"no order in hand names {digest}")
        if job.answered is not None and job.answered.failure is not None:
            failure = job.answered.failure
            raise Refused(failure.reason, failure.detail)
        job.touched = time.monotonic()
        return job.blobs[digest]

    def answered(self, digest: str, caller: Hotkey) -> Job:
        """The job whose answer's blob `digest` names. Raises Refused(unknown_blob)."""
        for job in (self._current, self._previous):
            blob = job.answered.blob if job is not None and job.answered is not None else None
            if job is not None and blob is not None and blob.ref.digest == digest and job.plan.order.sender == caller:
                job.touched = time.monotonic()
                return job
        raise Refused(Reason.UNKNOWN_BLOB, f"no answer held here names {digest}")

    async def receive_receipt(self, envelope: Envelope, caller: Hotkey) -> None:
        """Store a validator's receipt; it ends the work it is about. Raises Refused or ProtocolError."""
        receipt = open_envelope(envelope, "receipt", Receipt, signer=caller)
        if receipt.receiver != self.hotkey:
            raise Refused(Reason.WRONG_RECEIVER, f"the receipt is for {receipt.receiver[:60]}")
        if await off_loop(self._journal.keep_receipt, envelope):  # else it was sent again: the answer had been lost
            why = f" ({receipt.reason}: {receipt.detail})" if receipt.reason else ""
            became = printable(f"{receipt.status} by {caller[:12]}{why}")
            self._say(f"round {receipt.round}: {became}, weight {receipt.weight:.3f}")
        for job in (self._current, self._previous):
            if job is not None and job.plan.work_id == receipt.work_id and job.plan.order.sender == caller:
                await self._drop(job)

    async def close(self) -> None:
        """Stop working and begin nothing new; waits for a computation to end, but not for ever.

        The journal stays open: requests that are being answered may still have a receipt to keep.
        """
        self._closing = True
        if self._current is not None:
            self._current.give_up()
            await asyncio.wait({self._current.task}, timeout=_STOP_SECONDS)

    def _job(self, work: str, caller: Hotkey) -> Job:
        for job in (self._current, self._previous):
            if job is not None and job.plan.work_id == work and job.plan.order.sender == caller:
                return job
        raise Refused(Reason.UNKNOWN_WORK, f"no order in hand is {work[:64]}")

    async def _make_room(self, caller: Hotkey) -> None:
        """End or set aside the job in hand. Raises Refused(busy) where it is another validator's, or will not end."""
        job = self._current
        if job is None:
            return
        if job.plan.order.sender != caller and self._holds(job):
            raise Refused(Reason.BUSY, f"at work for another validator, round {job.plan.order.round}")
        if job.answered is not None and job.answered.blob is not None:
            self._previous, self._current = job, None
            return
        if not await self._drop(job):
            raise Refused(Reason.BUSY, "the computation before has not ended yet")

    def _holds(self, job: Job) -> bool:
        """Whether a job keeps other validators out: while it computes, and while its own is heard of."""
        if job.answered is None and not job.standing:
            return False
        if job.answered is not None and job.answered.blob is None:
            return False
        return job.computing or time.monotonic() - job.heard < _HOLD_SECONDS

    async def _drop(self, job: Job) -> bool:
        """Give a job up and forget it, if it ends in time; a computation that goes on keeps its buffers."""
        job.give_up()
        await asyncio.wait({job.task}, timeout=_STOP_SECONDS)
        if not job.task.done():
            return False
        if self._current is job:
            self._current = None
        if self._previous is job:
            self._previous = None
        return True

    async def _begin(self, plan: Plan) -> Job:
        """Start on an order; it is recorded on disk before the validator gets its answer.

        Raises Refused(cut_off) when the miner is closing: nobody's fault, as if the connection had broken.
        """
        self._check_open()
        manifest, state = self._shelf.manifest(plan), self._shelf.state(plan)
        await off_loop(self._journal.record, plan.order, plan.work_id)
        self._check_open()  # it may have begun to close meanwhile
        job = Job(plan, self._tools, manifest, state, before_compute=self._give_up_previous, done=self._tell)
        job.task.add_done_callback(self._watch)
        self._current = job
        order = plan.order
        self._say(f"round {order.round}: {order.n_windows} windows from {order.sender[:12]}, run {order.run_id[:8]}")
        return job

    def _check_open(self) -> None:
        if self._closing:
            raise _ending()

    def _give_up_previous(self) -> None:
        if self._previous is not None:
            self._previous.cut_readers()
            self._previous = None

    def _watch(self, task: asyncio.Task[None]) -> None:
        """A job that ends in an error nobody foresaw ends the program."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _tell(self, job: Job, answer: Answer) -> None:
        round_ = job.plan.order.round
        if answer.outcome is not None and answer.blob is not None:
            made = answer.outcome
            size = answer.blob.ref.length / 1e6
            self._say(
                f"round {round_}: answered in {made.seconds:.1f} s, "
                f"{made.tokens} tokens, loss {made.loss:.3f}, {size:.1f} MB"
            )
        elif answer.failure is not None:
            self._say(f"round {round_}: {answer.failure}")


def _ending() -> Refused:
    return Refused(Reason.CUT_OFF, "the miner is about to end")
