"""The port to a miner, and the values that pass through it.

A `Link` has no direction: `dial` calls the miner over HTTP, `memory` reaches one in this process. Whichever it is, the
order, its answer and the receipt are the same messages, and the answer is received by `receive`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedgpt2.errors import PeerError
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.messages import Contribution, Envelope, Order
from fedgpt2.protocol.tensors import Layout
from fedgpt2.types import Digest, Hotkey, WorkId

__all__ = ["ConnectedMiner", "IssuedOrder", "Lease", "Link", "OrderResult", "ReceivedContribution", "Traffic"]

Lease = Callable[[int], memoryview]  # size in bytes -> the buffer for one contribution's data; may wait for a disk


@dataclass(frozen=True)
class ConnectedMiner:
    """A miner that can be reached: its key, and the name of the axon where it answers."""

    hotkey: Hotkey
    axon: str


@dataclass(frozen=True)
class IssuedOrder:
    """A signed order to one miner, with its work id and the tokens it assigns."""

    miner: ConnectedMiner
    order: Order
    envelope: Envelope
    work_id: WorkId
    tokens: int


@dataclass(frozen=True)
class ReceivedContribution:
    """A contribution whose body is complete and matches digest and schema; its values have not been checked."""

    contribution: Contribution
    layout: Layout
    data: memoryview


@dataclass
class Traffic:
    """What one order cost: bytes of bodies and messages, and seconds since `began` by the validator's clock."""

    began: float = field(default_factory=time.monotonic)  # when the orders of the round were sent
    bytes_down: int = 0
    bytes_up: int = 0
    sent: float = 0.0  # the miner has order and state
    described: float = 0.0  # the signed contribution named its digest; a new digest sets it again
    received: float = 0.0  # the body is complete
    answered: bool = False  # a contribution arrived: a failure after that is a failure of the contribution

    def elapsed(self) -> float:
        """Seconds since the orders were sent."""
        return time.monotonic() - self.began


@dataclass(frozen=True)
class OrderResult:
    """What became of one order: a received contribution, or the failure.

    `answered` says that the failure is one of a contribution that arrived, not of the way to get one.
    """

    issued: IssuedOrder
    received: ReceivedContribution | None = None
    failure: PeerError | None = None
    answered: bool = False
    traffic: Traffic = field(default_factory=Traffic)


class Link(Protocol):
    """A way to reach one miner."""

    @property
    def miner(self) -> ConnectedMiner:
        """The miner at the other end."""

    async def offer(
        self, issued: IssuedOrder, blobs: Mapping[Digest, Blob], traffic: Traffic, lease: Lease
    ) -> ReceivedContribution:
        """Send the order and the `blobs` that the miner lacks; receive its contribution into the leased buffer.

        Counts into `traffic` as it goes. Raises PeerError, and nothing else that a miner can cause. There is no time
        limit: the caller cancels.
        """
        ...

    async def cancel(self, work_id: WorkId) -> None:
        """Tell the miner to stop work on an order. Raises PeerError."""
        ...

    async def deliver(self, receipt: Envelope) -> None:
        """Hand over a signed receipt. Raises PeerError."""
        ...
