"""The miners over HTTP: who is present, and one exchange a miner a round.

A bad peer costs itself, never the round: each exchange is a task of its own, every wait in it has a limit, and what
goes wrong becomes the outcome of that one ticket.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial

import aiohttp

from fedgpt2.config import Axons, Limits
from fedgpt2.errors import Culprit, NetworkError, NoMinersError, PeerError, Reason, Refused
from fedgpt2.identity.pins import KeyBook
from fedgpt2.identity.signing import Signer
from fedgpt2.ledger.outbox import KEPT, Outbox
from fedgpt2.link.address import Address
from fedgpt2.link.blobs import Blob
from fedgpt2.link.client import AxonClient
from fedgpt2.protocol.messages import Info, Receipt
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.exchange import Exchange
from fedgpt2.validator.peers import ConnectedMiner, IssuedOrder, OrderResult, Traffic

__all__ = ["DialledMiners"]

_PROBE_SECONDS = 1.0  # between two tries to reach an axon that does not answer
_BUSY_SECONDS = 2.0  # before miners of whom none has time are asked again
_RECEIPT_SECONDS = 10.0
_PARTING_SECONDS = 1.0  # for receipts, when the run is over
_UNREADABLE = (Reason.BAD_MESSAGE, Reason.UNSUPPORTED_VERSION, Reason.TOO_LARGE)  # of a receipt: for good
_ABSENT = (Reason.UNREACHABLE, Reason.WRONG_RECEIVER)  # nobody is there, or somebody else: to be introduced again


class DialledMiners:
    """Implements `validator.peers.Peers` over sockets."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        axons: Axons,
        addresses: Sequence[Address],
        limits: Limits,
        book: KeyBook,
        *,
        outbox: Outbox,
        record: Callable[[str, Hotkey], None],
        notice: Callable[[str], None],
        check_miner: Callable[[Info, Collection[Hotkey]], str | None] = lambda *_: None,
        lease: Callable[[str, int], memoryview] = lambda _, size: memoryview(bytearray(size)),
    ) -> None:
        """`check_miner`: why a miner cannot take part, from its info and the miners connected; None if it can."""
        self._signer = signer
        self._axons = axons
        self._limits = limits
        self._book = book
        self._outbox = outbox
        self._record = record
        self._notice = notice
        self._unsuited = check_miner
        self._clients = {str(address): AxonClient(session, signer, address, limits) for address in addresses}
        self._addresses = {str(address): address for address in addresses}
        self._seats: dict[str, ConnectedMiner] = {}  # axon -> the miner that answers there
        self._trouble: dict[str, str] = {}  # axon -> why nobody does
        self._changed = asyncio.Event()
        self._lease = lease
        self._posting: set[Hotkey] = set()  # miners whose receipts are on their way
        self._refusing: set[Hotkey] = set()  # those of whom one did not arrive since the last round
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None  # what ended a background task

    def start(self) -> None:
        """Begin to look for the miners."""
        for axon in self._clients:
            self._spawn(self._watch(axon))

    async def close(self) -> None:
        """End every task; receipts that wait get a moment, those of miners that are still to be found included."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_SECONDS):
                while self._outbox and (self._posting or not self._all_probed()):
                    self._changed.clear()
                    await self._changed.wait()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- who is present ---

    async def present(self, at_least: int) -> Sequence[ConnectedMiner]:
        """Miners that answer now, by axon. Raises NoMinersError with what is wrong at each axon.

        Raises as well what ended a task in the background: a run does not go on without one.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._axons.wait_seconds):
                while self._failure is None and (len(self._seats) < at_least or not self._all_probed()):
                    self._changed.clear()
                    await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if len(self._seats) < at_least:
            raise NoMinersError(self._why_nobody(at_least))
        return [self._seats[axon] for axon in self._clients if axon in self._seats]

    def _all_probed(self) -> bool:
        return all(axon in self._seats or axon in self._trouble for axon in self._clients)

    def _why_nobody(self, at_least: int) -> str:
        trouble = "; ".join(f"{axon}: {why}" for axon, why in sorted(self._trouble.items()))
        wanted = "no miner" if not self._seats else f"{len(self._seats)} of {at_least} miners"
        return (
            f"{wanted} answered within {self._axons.wait_seconds:g} s ({trouble or 'none tried'}); start miners first"
        )

    async def _watch(self, axon: str) -> None:
        """Introduce ourselves to an axon until it answers, and again whenever it is lost."""
        while True:
            if axon not in self._seats:
                await self._introduce(axon)
            await asyncio.sleep(_PROBE_SECONDS)

    async def _introduce(self, axon: str) -> None:
        client, address = self._clients[axon], self._addresses[axon]
        try:
            info = await client.introduce()
            shown = Hotkey(info.hotkey)
            change = self._book.check(axon, address.hotkey, shown, self._axons.accept_new)
        except PeerError as error:
            self._in_trouble(axon, str(error))
            return
        if change is not None:
            self._record(axon, shown)
        if (why := self._unsuited(info, [seat.hotkey for seat in self._seats.values()])) is not None:
            self._book.release(axon)
            self._in_trouble(axon, why)
            return
        self._trouble.pop(axon, None)
        self._seats[axon] = ConnectedMiner(shown, axon)
        self._changed.set()
        self._send(self._seats[axon])

    def _in_trouble(self, axon: str, why: str) -> None:
        if self._trouble.get(axon) != why:
            self._notice(f"{axon}: {why}; going on without it")
        self._trouble[axon] = why
        self._changed.set()

    def _lost(self, axon: str, why: str) -> None:
        if self._seats.pop(axon, None):
            self._book.release(axon)
            self._in_trouble(axon, why)

    # --- a round ---

    async def gather(
        self, tickets: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], *, deadline: float, quorum: int
    ) -> Sequence[OrderResult]:
        """One outcome a ticket, in order; no transfer of `blobs` is under way when this returns.

        Where nobody has time and nobody else is present, all are asked again until the deadline: a round that no miner
        takes part in trains nothing, and rounds are counted. Whoever then takes its order has all of its time.
        """
        end = time.monotonic() + deadline
        outcomes = await self._gather(tickets, blobs, deadline, quorum)
        if _all_busy(outcomes):
            self._notice("no miner has time (busy); asking again until the deadline")
        while _all_busy(outcomes) and self._nobody_else(tickets) and time.monotonic() + _BUSY_SECONDS < end:
            await asyncio.sleep(_BUSY_SECONDS)
            outcomes = await self._gather(tickets, blobs, deadline, quorum)
        return outcomes

    def _nobody_else(self, tickets: Sequence[IssuedOrder]) -> bool:
        """Whether all that are present have an order: the next round would ask no others."""
        return {seat.hotkey for seat in self._seats.values()} <= {ticket.seat.hotkey for ticket in tickets}

    async def _gather(
        self, tickets: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], deadline: float, quorum: int
    ) -> Sequence[OrderResult]:
        traffic = [Traffic() for _ in tickets]
        tasks = [
            asyncio.create_task(self._exchange(ticket, blobs, spent))
            for ticket, spent in zip(tickets, traffic, strict=True)
        ]
        try:
            enough = await _enough(tasks, quorum, deadline)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [
            self._given_up(ticket, spent, _missing(enough, spent)) if task.cancelled() else task.result()
            for ticket, task, spent in zip(tickets, tasks, traffic, strict=True)
        ]

    async def _exchange(self, ticket: IssuedOrder, blobs: Mapping[Digest, Blob], traffic: Traffic) -> OrderResult:
        exchange = Exchange(self._clients[ticket.seat.axon], ticket, blobs, self._limits, traffic, partial(self._lease, ticket.seat.axon))
        outcome = await exchange.run()
        if not outcome.answered and outcome.failure is not None and outcome.failure.reason in _ABSENT:
            self._lost(ticket.seat.axon, str(outcome.failure))
        return outcome

    def _given_up(self, ticket: IssuedOrder, traffic: Traffic, why: PeerError) -> OrderResult:
        self._spawn(self._cancel(ticket))
        return OrderResult(ticket, failure=why, traffic=traffic)

    async def _cancel(self, ticket: IssuedOrder) -> None:
        with suppress(PeerError):
            await self._clients[ticket.seat.axon].cancel(ticket.work_id)

    # --- after a round ---

    def deliver(self) -> None:
        """Send what waits for those who are present, in the background; for the others it goes on waiting."""
        self._refusing.clear()
        for hotkey in self._outbox.full():
            self._notice(f"{hotkey}: {KEPT} receipts wait for it; from now on it loses the oldest")
        for seat in self._seats.values():
            self._send(seat)

    def _send(self, seat: ConnectedMiner) -> None:
        """Once a round, and when the miner is found; not again before the next round if one does not arrive."""
        if seat.hotkey not in self._posting | self._refusing and self._waiting(seat):
            self._posting.add(seat.hotkey)
            self._spawn(self._post(seat))

    def _waiting(self, seat: ConnectedMiner) -> list[Receipt]:
        """What may be signed for a miner by this validator's key."""
        return [r for r in self._outbox.waiting(seat.hotkey) if r.sender == self._signer.hotkey]

    async def _post(self, seat: ConnectedMiner) -> None:
        """Send one miner's receipts, oldest first, while it is there and until one does not arrive."""
        try:
            while self._seats.get(seat.axon) == seat and (waiting := self._waiting(seat)):
                if not await self._arrives(seat, waiting[0]):
                    self._refusing.add(seat.hotkey)
                    break
                self._outbox.arrived(waiting[0])
        finally:
            self._posting.discard(seat.hotkey)
            self._changed.set()

    async def _arrives(self, seat: ConnectedMiner, receipt: Receipt) -> bool:
        """Whether the miner has the receipt now; one that it says it cannot read is not sent again."""
        try:
            async with asyncio.timeout(_RECEIPT_SECONDS):
                await self._clients[seat.axon].deliver_receipt(self._signer.seal("receipt", receipt))
        except (PeerError, TimeoutError) as error:
            unreadable = isinstance(error, Refused) and error.reason in _UNREADABLE and error.culprit != Culprit.MINER
            if unreadable:
                self._outbox.arrived(receipt)
            again = "it will not be sent again" if unreadable else "it is kept"
            why = str(error) or "timed out"
            self._notice(f"{seat.axon}: receipt of round {receipt.round} not delivered ({why}); {again}")
            return False
        return True

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._changed.set()


def _all_busy(outcomes: Sequence[OrderResult]) -> bool:
    reasons = {outcome.failure.reason if outcome.failure else None for outcome in outcomes}
    return reasons == {Reason.BUSY}


def _missing(enough: bool, traffic: Traffic) -> PeerError:
    """Why there is no answer of a miner that was still at it when the wait ended."""
    if enough:
        return Refused(Reason.CANCELLED, "others were enough")  # no fault of a miner that had time left
    if not traffic.sent:
        return NetworkError(Reason.TIMED_OUT, "the state was not there by the deadline")  # the link's, as far as we see
    return Refused(Reason.LATE, "no answer by the deadline")


async def _enough(tasks: Sequence[asyncio.Task[OrderResult]], wanted: int, deadline: float) -> bool:
    """Wait until `wanted` tasks brought an answer, or all are done; False if the deadline came first."""
    pending = set(tasks)
    try:
        async with asyncio.timeout(deadline):
            while pending and sum(task.done() and task.result().answer is not None for task in tasks) < wanted:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        return False
    return True
