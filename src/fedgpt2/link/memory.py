"""A link to a miner in the same process: the messages and bytes of the wire without a socket.

The order's JSON goes in; the JSON of the signed answer comes out, then the bytes of the body that it names. Both pass
through the receive path of every link. Only signatures may be left out (`verify`): a simulated miner has no key.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from fedgpt2.errors import Culprit, blamed_on
from fedgpt2.identity.keys import verify as verify_signature
from fedgpt2.identity.signing import Verify
from fedgpt2.link.base import ConnectedMiner, IssuedOrder, Lease, ReceivedContribution, Traffic
from fedgpt2.link.blobs import Blob
from fedgpt2.link.receive import Receiver
from fedgpt2.protocol.messages import Envelope, Kind, Message, decode, encode
from fedgpt2.types import Digest, Hotkey, WorkId

__all__ = ["Answer", "MemoryLink", "MemoryMiner", "seal_unsigned", "unsigned"]

_NO_SIGNATURE = "0" * 128


@dataclass(frozen=True)
class Answer:
    """A miner's answer: the JSON of its signed envelope, and how to get the body that it names."""

    envelope: bytes
    body: Callable[[], Awaitable[Blob]]


class MemoryMiner(Protocol):
    """A miner in this process."""

    def work(self, order: bytes, blobs: Mapping[Digest, Blob]) -> AbstractAsyncContextManager[Answer]:
        """The answer to an order (JSON of its signed envelope); left when the body is received or refused.

        `blobs` are those that the order names. Raises PeerError where the link or the miner fails.
        """
        ...

    def take_receipt(self, receipt: bytes) -> None:
        """Take a receipt (JSON of its signed envelope)."""
        ...


class MemoryLink:
    """Implements `link.base.Link` for a miner in this process."""

    def __init__(
        self, worker: MemoryMiner, miner: ConnectedMiner, header_limit: int, verify: Verify = verify_signature
    ) -> None:
        """`header_limit`: most bytes of JSON header accepted; `verify` checks the miner's signatures."""
        self.miner = miner
        self._worker = worker
        self._header_limit = header_limit
        self._verify = verify

    async def offer(
        self, issued: IssuedOrder, blobs: Mapping[Digest, Blob], traffic: Traffic, lease: Lease
    ) -> ReceivedContribution:
        """As `Link` says; only states and bodies are counted."""
        receiver = Receiver(issued, self._header_limit, traffic, lease, self._verify)
        traffic.bytes_down += sum(ref.length for ref in issued.order.state)
        async with self._worker.work(encode(issued.envelope), blobs) as answer:
            with blamed_on(Culprit.MINER):
                incoming = receiver.answer(decode(answer.envelope, Envelope))
                body = await answer.body()
                for part in body.slices():
                    await incoming.feed(part)
                whole = await incoming.finish()
            traffic.bytes_up += whole.ref.length
            return receiver.contribution(whole)

    async def cancel(self, work_id: WorkId) -> None:
        """Nothing to do: work ends when its offer is cancelled."""

    async def deliver(self, receipt: Envelope) -> None:
        """As `Link` says."""
        self._worker.take_receipt(encode(receipt))


def unsigned(hotkey: str, message: bytes, signature: bytes) -> bool:
    """Accept any signature, in place of `identity.keys.verify`."""
    return True


def seal_unsigned(kind: Kind, message: Message, hotkey: Hotkey) -> bytes:
    """The JSON of an envelope as the hotkey's owner would seal it, but for the signature."""
    payload = encode(message).decode()
    return encode(Envelope(kind=kind, payload=payload, signer=hotkey, signature=_NO_SIGNATURE))
