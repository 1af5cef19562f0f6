"""A link over which the validator calls the miner: order, state, answer and gradient over HTTP.

After a network failure the same order is sent again, with back-off, and transfers go on at the byte reached. Each byte
of progress in either direction starts the back-off anew; the retries end when nothing moved in several of them, or when
the caller cancels. Every other failure ends the offer at once.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, NetworkError, PeerError, ProtocolError, Reason, Refused
from fedgpt2.link.base import ConnectedMiner, IssuedOrder, Lease, ReceivedContribution, Traffic
from fedgpt2.link.blobs import Blob
from fedgpt2.link.client import AxonClient
from fedgpt2.link.receive import Receiver
from fedgpt2.protocol.messages import Envelope
from fedgpt2.types import Digest, WorkId

__all__ = ["DialLink"]

_POLL_SECONDS = 30.0
_POLL_APART = 1.0  # seconds between the starts of two polls, if the miner answers "pending" at once
_SENT_AT_MOST = 3.0  # times the size of state and manifest: then a miner that always lacks some of them is given up
_BACK_OFF = (0.2, 0.4, 0.8, 1.6)  # seconds before each retry since the last progress; after the last one it fails
_LOST = (Reason.UNREACHABLE, Reason.WRONG_RECEIVER)  # nothing answers at the axon, or another hotkey does


class DialLink:
    """Implements `link.base.Link` over an axon's client."""

    def __init__(
        self,
        client: AxonClient,
        miner: ConnectedMiner,
        limits: Limits,
        lost: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """`lost` is called with the reason when the miner no longer answers at its axon."""
        self.miner = miner
        self._client = client
        self._limits = limits
        self._lost = lost

    async def offer(
        self, issued: IssuedOrder, blobs: Mapping[Digest, Blob], traffic: Traffic, lease: Lease
    ) -> ReceivedContribution:
        """As `Link` says."""
        down, up = self._client.bytes_sent, self._client.bytes_received
        receiver = Receiver(issued, self._limits.header_bytes, traffic, lease)
        try:
            with _credible_reasons():
                return await _Exchange(self._client, issued, blobs, traffic, receiver).run()
        except PeerError as error:
            if not traffic.answered and error.reason in _LOST:
                self._lost(str(error))
            raise
        finally:
            traffic.bytes_down += self._client.bytes_sent - down
            traffic.bytes_up += self._client.bytes_received - up

    async def cancel(self, work_id: WorkId) -> None:
        """As `Link` says."""
        await self._client.cancel(work_id)

    async def deliver(self, receipt: Envelope) -> None:
        """As `Link` says."""
        await self._client.deliver_receipt(receipt)


class _Exchange:
    """One order's requests, and the retries of them."""

    def __init__(
        self,
        client: AxonClient,
        issued: IssuedOrder,
        blobs: Mapping[Digest, Blob],
        traffic: Traffic,
        receiver: Receiver,
    ) -> None:
        self._client = client
        self._issued = issued
        self._blobs = blobs
        self._traffic = traffic
        self._receiver = receiver
        self._lacking = math.inf  # bytes of state and manifest that the miner last said it lacks
        self._advances = 0  # times the miner was found to hold more than before, or at work
        self._sendable = _SENT_AT_MOST * sum(blob.ref.length for blob in blobs.values())  # bytes left to send

    async def run(self) -> ReceivedContribution:
        """Raises PeerError when the retries are used up, or at once for anything but a NetworkError."""
        pauses = iter(_BACK_OFF)
        while True:
            reached = self._progress()
            try:
                return await self._attempt()
            except NetworkError:
                if self._progress() != reached:
                    pauses = iter(_BACK_OFF)
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)

    def _progress(self) -> tuple[int, int]:
        """Changes whenever bytes moved up or down, or the miner was found at work."""
        return self._advances, self._receiver.have

    async def _attempt(self) -> ReceivedContribution:
        await self._send()
        incoming = self._receiver.answer(await self._answer())
        await self._receiver.reserve()
        return self._receiver.contribution(await self._client.get_blob(incoming))

    async def _send(self) -> None:
        """Post the order, then the blobs that the miner says it lacks."""
        accepted = await self._client.post_order(self._issued.envelope)
        if len({lack.digest for lack in accepted.lacks}) < len(accepted.lacks):
            raise ProtocolError("asks for a blob twice", culprit=Culprit.MINER)
        lacks = [(self._blob(lack.digest), lack.have) for lack in accepted.lacks]
        self._note_lacking(sum(max(0, blob.ref.length - have) for blob, have in lacks))
        for blob, have in lacks:
            await self._put(blob, have)
        self._traffic.sent = self._traffic.sent or self._traffic.elapsed()

    def _blob(self, digest: str) -> Blob:
        blob = self._blobs.get(Digest(digest))
        if blob is None:
            raise ProtocolError(f"asks for a blob that no order names: {digest[:12]}", culprit=Culprit.MINER)
        return blob

    def _note_lacking(self, count: int) -> None:
        """Only what the miner says it lacks measures progress: bytes sent may lie in buffers on the way."""
        self._advances += count < self._lacking
        self._lacking = count

    async def _put(self, blob: Blob, have: int) -> None:
        """Send a blob from byte `have` on. Raises Refused(timed_out) when all that may be sent has been."""
        if self._sendable <= 0:
            raise Refused(
                Reason.TIMED_OUT, f"sent {_SENT_AT_MOST:g} times what a round needs, and some is lacking still"
            )
        before = self._client.bytes_sent
        try:
            await self._client.put_blob(blob, have)
        finally:
            self._sendable -= self._client.bytes_sent - before

    async def _answer(self) -> Envelope:
        """Poll until the miner has an answer."""
        while True:
            began = time.monotonic()
            status = await self._client.wait(self._issued.work_id, _POLL_SECONDS)
            if status.answer is not None:
                return status.answer
            self._advances += 1
            await asyncio.sleep(max(0.0, began + _POLL_APART - time.monotonic()))


@contextmanager
def _credible_reasons() -> Iterator[None]:
    """Record compute_failed for a refusal whose reason the miner cannot know.

    The validator cancels nothing while it listens, and a miner that answers is reachable.
    """
    try:
        yield
    except Refused as error:
        if error.reason not in (Reason.CANCELLED, Reason.UNREACHABLE):
            raise
        raise Refused(Reason.COMPUTE_FAILED, error.detail) from error
