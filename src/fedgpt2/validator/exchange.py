"""One miner's share of a round over HTTP: order, state, answer, gradient.

A broken link is tried again, with the same order and from the byte reached, until the round's deadline or until several
tries in a row have moved nothing in either direction; everything else ends the exchange.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedgpt2 import codec
from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, NetworkError, PeerError, ProtocolError, Reason, Refused
from fedgpt2.event_loop import off_loop
from fedgpt2.identity.signing import open_envelope
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.link.client import AxonClient
from fedgpt2.protocol.messages import Contribution, Envelope, Failure
from fedgpt2.protocol.tensors import Layout, read_header
from fedgpt2.types import Digest
from fedgpt2.validator.admission import check_contribution
from fedgpt2.validator.peers import IssuedOrder, OrderResult, ReceivedContribution, Traffic

__all__ = ["Exchange"]

_POLL_SECONDS = 30.0
_POLL_APART = 1.0  # seconds between the starts of two polls, of a miner that answers "pending" at once
_SENT_AT_MOST = 3.0  # times state and manifest: a miner that takes them and cuts the link again is given up
_PAUSES = (0.2, 0.4, 0.8, 1.6)  # before each new try since the last progress; after the last one it is given up


class Exchange:
    """State of one exchange: what has been received survives a broken link."""

    def __init__(
        self,
        client: AxonClient,
        ticket: IssuedOrder,
        blobs: Mapping[Digest, Blob],
        limits: Limits,
        traffic: Traffic,
        lease: Callable[[int], memoryview],
    ) -> None:
        self._client = client
        self._ticket = ticket
        self._blobs = blobs
        self._limits = limits
        self._traffic = traffic
        self._lease = lease
        self._buffer = memoryview(b"")
        self._began = time.monotonic()
        self._layout: Layout | None = None
        self._incoming: Incoming | None = None
        self._contribution: Contribution | None = None
        self._lacking = math.inf  # bytes of state and manifest, by the miner's last word
        self._advances = 0  # times the miner was found to hold more than before, or at work
        self._judging = False  # an answer came: what is wrong from here on is wrong with it
        self._sendable = _SENT_AT_MOST * sum(blob.ref.length for blob in blobs.values())  # bytes still to be spent

    async def run(self) -> OrderResult:
        """The outcome; raises nothing but CancelledError."""
        down, up = self._client.bytes_sent, self._client.bytes_received
        outcome = OrderResult(self._ticket, traffic=self._traffic)
        try:
            return replace(outcome, answer=await self._persist(), answered=True)
        except PeerError as error:
            failure = _held(error)
            return replace(outcome, failure=failure, answered=self._judging and failure.culprit is Culprit.MINER)
        finally:
            self._traffic.bytes_down += self._client.bytes_sent - down
            self._traffic.bytes_up += self._client.bytes_received - up

    async def _persist(self) -> ReceivedContribution:
        pauses = iter(_PAUSES)
        while True:
            reached = self._progress()
            try:
                return await self._attempt()
            except NetworkError:
                if self._progress() != reached:
                    pauses = iter(_PAUSES)
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)

    def _progress(self) -> tuple[int, int]:
        """Another value whenever the exchange has moved on, upwards, at the miner, or downwards."""
        return self._advances, self._incoming.have if self._incoming else 0

    async def _attempt(self) -> ReceivedContribution:
        accepted = await self._client.post_order(self._ticket.envelope)
        if len({lack.digest for lack in accepted.lacks}) < len(accepted.lacks):
            raise ProtocolError("asks for a blob twice", culprit=Culprit.MINER)
        lacks = [(self._blob(lack.digest), lack.have) for lack in accepted.lacks]
        self._note_lacking(sum(max(0, blob.ref.length - have) for blob, have in lacks))
        for blob, have in lacks:
            await self._put(blob, have)
        self._traffic.sent = self._traffic.sent or self._elapsed()
        envelope = await self._answer()
        self._traffic.described = self._traffic.described or self._elapsed()
        contribution = self._open(envelope)
        self._buffer = await off_loop(self._lease, contribution.blob.length)
        gradient = await self._client.get_blob(self._expect(contribution))
        self._traffic.received = self._elapsed()
        if self._layout is None:
            raise ProtocolError("a body without a header", culprit=Culprit.MINER)
        return ReceivedContribution(contribution, self._layout, gradient.data)

    async def _put(self, blob: Blob, have: int) -> None:
        """Raises Refused(timed_out) where so much was sent that what is missing should be there."""
        if self._sendable <= 0:
            raise Refused(
                Reason.TIMED_OUT, f"sent {_SENT_AT_MOST:g} times what a round needs, and some is lacking still"
            )
        before = self._client.bytes_sent
        try:
            await self._client.put_blob(blob, have)
        finally:
            self._sendable -= self._client.bytes_sent - before

    def _note_lacking(self, count: int) -> None:
        """The miner's word of what it lacks counts, not what was sent: buffers on the way take much of that."""
        self._advances += count < self._lacking
        self._lacking = count

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _blob(self, digest: str) -> Blob:
        blob = self._blobs.get(Digest(digest))
        if blob is None:
            raise ProtocolError(f"asks for a blob that no order names: {digest[:12]}", culprit=Culprit.MINER)
        return blob

    async def _answer(self) -> Envelope:
        while True:
            began = time.monotonic()
            status = await self._client.wait(self._ticket.work_id, _POLL_SECONDS)
            if status.answer is not None:
                return status.answer
            self._advances += 1
            await asyncio.sleep(max(0.0, began + _POLL_APART - time.monotonic()))

    def _open(self, envelope: Envelope) -> Contribution:
        """The contribution in a signed answer, checked against the order. Raises Refused or ProtocolError."""
        order, miner = self._ticket.order, self._ticket.seat.hotkey
        if envelope.kind == "failure":
            failure = open_envelope(envelope, "failure", Failure, signer=miner)
            raise Refused(_reason(failure.reason), f"the miner says: {failure.detail}"[:300])
        self._judging = True
        contribution = open_envelope(envelope, "contribution", Contribution, signer=miner)
        check_contribution(order, self._ticket.work_id, contribution, self._limits.header_bytes)
        return contribution

    def _expect(self, contribution: Contribution) -> Incoming:
        """Where its gradient goes; what has arrived of the same answer is kept."""
        before, self._contribution = self._contribution, contribution
        if before is not None and before.blob.digest != contribution.blob.digest:
            self._traffic.described = self._elapsed()  # else a made-up digest would date a gradient seen later
        if self._incoming is None or before is None or before.blob != contribution.blob:
            self._incoming = Incoming(
                contribution.blob, header_limit=self._limits.header_bytes, open_data=self._open_data
            )
        return self._incoming

    def _open_data(self, header: bytes) -> memoryview:
        """Destination of the data, once its header describes exactly the gradient asked for."""
        which = codec.get(self._incoming.ref.codec if self._incoming else "")
        schema = self._ticket.order.model.schema()
        self._layout = read_header(header, schema, which.dtype)
        return self._buffer[: self._layout.data_bytes]


def _reason(word: str) -> Reason:
    """Why a miner gives up an order that it took on: it was not too busy for it."""
    try:
        reason = Reason(word)
    except ValueError:
        return Reason.COMPUTE_FAILED
    return Reason.COMPUTE_FAILED if reason is Reason.BUSY else reason


def _held(failure: PeerError) -> PeerError:
    """The failure, or what a miner means that says what it cannot know.

    Nothing is called off while we still listen, and whoever says that nobody is there is there: it gave up.
    """
    said = isinstance(failure, Refused) and failure.reason in (Reason.CANCELLED, Reason.UNREACHABLE)
    return Refused(Reason.COMPUTE_FAILED, failure.detail) if said else failure
