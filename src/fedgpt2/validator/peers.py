"""The port through which a round talks to miners, and the values that pass through it.

HTTP implements it over sockets (http_peers.py); a simulation implements it in one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedgpt2.errors import PeerError
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.messages import Contribution, Envelope, Order
from fedgpt2.protocol.tensors import Layout
from fedgpt2.types import Digest, Hotkey, WorkId

__all__ = ["ConnectedMiner", "IssuedOrder", "Miners", "OrderResult", "ReceivedContribution", "Traffic"]


@dataclass(frozen=True)
class ConnectedMiner:
    """A miner that is present: its key and where it answers."""

    hotkey: Hotkey
    axon: str


@dataclass(frozen=True)
class IssuedOrder:
    """An order, signed, with the name of the work it asks for and the tokens it assigns."""

    seat: ConnectedMiner
    order: Order
    envelope: Envelope
    work_id: WorkId
    tokens: int


@dataclass(frozen=True)
class ReceivedContribution:
    """A contribution whose body has arrived whole and matches its digest; nothing else is known of it yet."""

    contribution: Contribution
    layout: Layout
    data: memoryview


@dataclass
class Traffic:
    """What one miner's share of a round cost: bytes by the validator's count, seconds by its clock."""

    bytes_down: int = 0
    bytes_up: int = 0
    sent: float = 0.0  # the miner holds order and state
    described: float = 0.0  # its answer is known; another digest is another answer
    received: float = 0.0  # the gradient is here


@dataclass(frozen=True)
class OrderResult:
    """What became of one ticket: an answer, or the failure that says why not.

    `answered` tells a failure of an answer that came from one to get any.
    """

    ticket: IssuedOrder
    answer: ReceivedContribution | None = None
    failure: PeerError | None = None
    answered: bool = False
    traffic: Traffic = field(default_factory=Traffic)


class Miners(Protocol):
    """The miners, as a round sees them."""

    async def present(self, at_least: int) -> Sequence[ConnectedMiner]:
        """Miners that answer now. Raises NoMinersError when fewer than `at_least` came in the time allowed."""
        ...

    async def gather(
        self, tickets: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], *, deadline: float, quorum: int
    ) -> Sequence[OrderResult]:
        """Order from all at once; one outcome a ticket, in order.

        At the latest after `deadline` seconds, or when `quorum` of them have answered.
        """
        ...

    def deliver(self) -> None:
        """Send the receipts that wait in the outbox, without holding up the caller."""
        ...
