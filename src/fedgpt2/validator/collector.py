"""The miners of a run: which are connected, one round's orders and contributions, receipts. For any mix of links.

A failing miner costs itself, never the round: each order is a task of its own, and its failure is its result.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial

from fedgpt2.errors import Culprit, NetworkError, NoMinersError, PeerError, Reason, Refused
from fedgpt2.identity.signing import Signer
from fedgpt2.ledger.outbox import MAX_WAITING, Outbox
from fedgpt2.link.base import ConnectedMiner, IssuedOrder, Link, OrderResult, Traffic
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.messages import Receipt
from fedgpt2.types import Digest, Hotkey

__all__ = ["Collector"]

_BUSY_SECONDS = 2.0  # before miners that are all busy are asked again
_RECEIPT_SECONDS = 10.0
_CLOSING_SECONDS = 1.0  # for receipts, when the run is over
_UNREADABLE = (Reason.BAD_MESSAGE, Reason.UNSUPPORTED_VERSION, Reason.TOO_LARGE)  # the receipt is not sent again


class Collector:
    """Offers orders over links, collects contributions, delivers receipts.

    Whoever finds a miner connects its link, and disconnects it when the miner is lost (`discovery`, a simulation).
    """

    def __init__(
        self,
        signer: Signer,
        outbox: Outbox,
        lease: Callable[[str, int], memoryview],
        notice: Callable[[str], None],
        *,
        wait_seconds: float = 0.0,
        deadlines: bool = True,
    ) -> None:
        """`lease`: axon, size -> buffer; `wait_seconds`: how long `present` waits for miners.

        `deadlines` false: no order is ever late, for miners that share this process's cores.
        """
        self._signer = signer
        self._outbox = outbox
        self._lease = lease
        self._notice = notice
        self._wait_seconds = wait_seconds
        self._deadlines = deadlines
        self._links: dict[str, Link | None] = {}  # by axon, in the order in which the axons were first named
        self._absent: dict[str, str] = {}  # axon -> why no miner answers there
        self._changed = asyncio.Event()
        self._delivering: set[Hotkey] = set()  # miners whose receipts are being sent
        self._undelivered: set[Hotkey] = set()  # miners that failed to take one since the last round
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None  # what ended a background task

    async def close(self) -> None:
        """End every task, after a moment for receipts, also to miners that are not found yet."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                while self._outbox and (self._delivering or not self._all_known()):
                    await self._change()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in the background until `close`; `present` raises the error that ends it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = error
            self._changed.set()

    # --- presence ---

    def expect(self, axon: str) -> None:
        """Have `present` wait until it is known whether a miner answers at `axon`."""
        self._links.setdefault(axon, None)

    def connect(self, link: Link) -> None:
        """The miner can be reached over `link`; takes the place of an earlier link to its axon."""
        self._absent.pop(link.miner.axon, None)
        self._links[link.miner.axon] = link
        self._changed.set()
        self._send_receipts(link)

    def disconnect(self, axon: str, why: str) -> None:
        """No miner can be reached at `axon`; the reason is told when it is a new one."""
        if self._absent.get(axon) != why:
            self._notice(f"{axon}: {why}; going on without it")
        self._links[axon], self._absent[axon] = None, why
        self._changed.set()

    @property
    def miners(self) -> list[ConnectedMiner]:
        """Those connected, in the order in which their axons were first named."""
        return [link.miner for link in self._links.values() if link is not None]

    async def present(self, at_least: int, *, give_up: bool = True) -> Sequence[ConnectedMiner]:
        """The miners connected, once there are `at_least` and every expected axon is known.

        After `wait_seconds` that is NoMinersError, with what is wrong at each axon; with `give_up` false it is said
        once and the wait goes on. Raises as well what ended a background task: a run does not go on without one.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                while self._error is None and (len(self.miners) < at_least or not self._all_known()):
                    await self._change()
        if self._error is None and len(self.miners) < at_least:
            if give_up:
                raise NoMinersError(f"{self._missing(at_least)}; start miners first")
            self._notice(f"{self._missing(at_least)}; waiting for them")
            while self._error is None and len(self.miners) < at_least:
                await self._change()
        if self._error is not None:
            raise self._error
        return self.miners

    def _all_known(self) -> bool:
        return all(link is not None or axon in self._absent for axon, link in self._links.items())

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _missing(self, at_least: int) -> str:
        whys = "; ".join(f"{axon}: {why}" for axon, why in sorted(self._absent.items()))
        there = len(self.miners)
        wanted = f"{there} of {at_least} miners" if there else "no miner"
        return f"{wanted} answered within {self._wait_seconds:g} s ({whys or 'none tried'})"

    # --- a round ---

    async def collect(
        self, orders: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], *, deadline: float, quorum: int
    ) -> list[OrderResult]:
        """Offer all orders at once; one result an order, in order, after `deadline` seconds or `quorum` contributions.

        No transfer of `blobs` is under way when this returns. Where all miners are busy and no other is connected, they
        are asked again until the deadline, each time with all of it to answer: a round without one trains nothing.
        """
        end = time.monotonic() + deadline
        results = await self._collect(orders, blobs, deadline, quorum)
        if _all_busy(results):
            self._notice("no miner has time (busy); asking again until the deadline")
        while _all_busy(results) and self._all_ordered(orders) and time.monotonic() + _BUSY_SECONDS < end:
            await asyncio.sleep(_BUSY_SECONDS)
            results = await self._collect(orders, blobs, deadline, quorum)
        return results

    def _all_ordered(self, orders: Sequence[IssuedOrder]) -> bool:
        """Whether every connected miner has an order: the next round would ask no others."""
        return {miner.hotkey for miner in self.miners} <= {issued.miner.hotkey for issued in orders}

    async def _collect(
        self, orders: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], deadline: float, quorum: int
    ) -> list[OrderResult]:
        began = time.monotonic()
        traffic = [Traffic(began) for _ in orders]
        tasks = [
            asyncio.create_task(self._offer(issued, blobs, spent))
            for issued, spent in zip(orders, traffic, strict=True)
        ]
        wait = _QuorumWait(tasks, quorum)
        try:
            await wait.end(deadline if self._deadlines else None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [
            self._given_up(issued, spent, wait.reached) if task.cancelled() else task.result()
            for issued, task, spent in zip(orders, tasks, traffic, strict=True)
        ]

    async def _offer(self, issued: IssuedOrder, blobs: Mapping[Digest, Blob], traffic: Traffic) -> OrderResult:
        link = self._link(issued.miner)
        try:
            if link is None:
                raise NetworkError(Reason.UNREACHABLE, "the miner is no longer connected")
            received = await link.offer(issued, blobs, traffic, partial(self._lease, issued.miner.axon))
        except PeerError as failure:
            answered = traffic.answered and failure.culprit is Culprit.MINER
            return OrderResult(issued, failure=failure, answered=answered, traffic=traffic)
        return OrderResult(issued, received, answered=True, traffic=traffic)

    def _link(self, miner: ConnectedMiner) -> Link | None:
        link = self._links.get(miner.axon)
        return link if link is not None and link.miner == miner else None

    def _given_up(self, issued: IssuedOrder, traffic: Traffic, enough: bool) -> OrderResult:
        if (link := self._link(issued.miner)) is not None:
            self.spawn(_cancel(link, issued))
        return OrderResult(issued, failure=_why_given_up(enough, traffic), traffic=traffic)

    # --- receipts ---

    def deliver(self) -> None:
        """Send the receipts that wait to the miners connected, in the background; the others' go on waiting."""
        self._undelivered.clear()
        for hotkey in self._outbox.newly_overflowing():
            self._notice(f"{hotkey}: {MAX_WAITING} receipts wait for it; from now on it loses the oldest")
        for link in self._links.values():
            if link is not None:
                self._send_receipts(link)

    def _send_receipts(self, link: Link) -> None:
        """Once a round, and when the miner connects; after a failure not before the next round."""
        hotkey = link.miner.hotkey
        if hotkey not in self._delivering and hotkey not in self._undelivered and self._waiting(link):
            self._delivering.add(hotkey)
            self.spawn(self._deliver(link))

    def _waiting(self, link: Link) -> list[Receipt]:
        """Receipts that this validator's key may sign."""
        return [r for r in self._outbox.waiting(link.miner.hotkey) if r.sender == self._signer.hotkey]

    async def _deliver(self, link: Link) -> None:
        """Send one miner's receipts, oldest first, while it is connected and until one fails."""
        hotkey = link.miner.hotkey
        try:
            while self._link(link.miner) is link and (waiting := self._waiting(link)):
                if not await self._arrives(link, waiting[0]):
                    self._undelivered.add(hotkey)
                    break
                self._outbox.remove(waiting[0])
        finally:
            self._delivering.discard(hotkey)
            self._changed.set()

    async def _arrives(self, link: Link, receipt: Receipt) -> bool:
        """Whether the miner took the receipt; one that it says it cannot read is dropped."""
        try:
            async with asyncio.timeout(_RECEIPT_SECONDS):
                await link.deliver(self._signer.seal("receipt", receipt))
        except (PeerError, TimeoutError) as error:
            unreadable = isinstance(error, Refused) and error.reason in _UNREADABLE and error.culprit != Culprit.MINER
            if unreadable:
                self._outbox.remove(receipt)
            again = "it will not be sent again" if unreadable else "it is kept"
            why = str(error) or "timed out"
            self._notice(f"{link.miner.axon}: receipt of round {receipt.round} not delivered ({why}); {again}")
            return False
        return True


class _QuorumWait:
    """Ends when so many orders have brought a contribution, or all are done; then the others are cancelled at once.

    They are counted as each task ends, so that which orders count does not depend on when the waiting task runs.
    """

    def __init__(self, tasks: Sequence[asyncio.Task[OrderResult]], quorum: int) -> None:
        self.reached = False
        self._tasks = tasks
        self._missing = quorum
        for task in tasks:
            task.add_done_callback(self._count)

    async def end(self, seconds: float | None) -> None:
        """Wait, for at most so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _count(self, task: asyncio.Task[OrderResult]) -> None:
        failed = not task.cancelled() and task.exception() is not None  # no miner's doing: it ends the round
        if not task.cancelled() and not failed and task.result().received is not None:
            self._missing -= 1
            self.reached = self._missing <= 0
        if self.reached or failed:
            for other in self._tasks:
                other.cancel()


async def _cancel(link: Link, issued: IssuedOrder) -> None:
    with suppress(PeerError):
        await link.cancel(issued.work_id)


def _all_busy(results: Sequence[OrderResult]) -> bool:
    return {result.failure.reason if result.failure else None for result in results} == {Reason.BUSY}


def _why_given_up(enough: bool, traffic: Traffic) -> PeerError:
    """Why there is no contribution of a miner that had not answered when the wait ended."""
    if enough:
        return Refused(Reason.CANCELLED, "others were enough")  # the miner had time left
    if not traffic.sent:
        return NetworkError(Reason.TIMED_OUT, "the state was not there by the deadline")
    return Refused(Reason.LATE, "no answer by the deadline")
