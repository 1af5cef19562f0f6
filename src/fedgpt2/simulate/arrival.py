"""An answer as it arrives at the validator, without a wire: the checks of `validator.exchange`, in its order.

A body here is memory that is there already. It is looked at all the same as it would be while it came in: what it says
of itself, its length, its header; its digest is taken from the bytes themselves, so it is always right.
"""

from dataclasses import dataclass

from fedgpt2 import codec
from fedgpt2.errors import Culprit, ProtocolError, Reason
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.messages import BlobRef, Contribution, decode, encode
from fedgpt2.protocol.tensors import PREFIX, header_length, read_header
from fedgpt2.types import Digest
from fedgpt2.validator.admission import check_contribution
from fedgpt2.validator.peers import IssuedOrder, ReceivedContribution

__all__ = ["Body", "Claims", "receive"]


@dataclass(frozen=True)
class Body:
    """A blob that is sent: length prefix and JSON header, then data."""

    codec: str
    header: bytes
    data: memoryview

    @property
    def length(self) -> int:
        """Bytes in all."""
        return len(self.header) + self.data.nbytes

    def split(self, at: int) -> tuple[bytes, memoryview]:
        """The first `at` bytes, and the rest as writable memory; a copy only where it must be one."""
        if at == len(self.header) and not self.data.readonly:
            return self.header, self.data
        whole = bytearray(self.header)
        whole += self.data
        return bytes(whole[:at]), memoryview(whole)[at:]


@dataclass(frozen=True)
class Claims:
    """What a contribution says of itself that nobody can check, and the weights it says it is over."""

    parent: Digest
    loss: float  # nats a token
    seconds: float


def receive(ticket: IssuedOrder, body: Body, claims: Claims, header_limit: int) -> ReceivedContribution:
    """The answer to `ticket`, its body checked as far as a validator does before it looks at values.

    Raises Refused or ProtocolError, blamed on the miner, with the reason that the same bytes have over HTTP.
    """
    try:
        contribution = decode(encode(_contribution(ticket, body, claims)), Contribution)
        check_contribution(ticket.order, ticket.work_id, contribution, header_limit)
        return _read(ticket, contribution, body, header_limit)
    except ProtocolError as error:
        raise ProtocolError(error.detail, error.reason, Culprit.MINER) from error


def _contribution(ticket: IssuedOrder, body: Body, claims: Claims) -> Contribution:
    order = ticket.order
    digest = blob_digest(body.header, body.data)
    return Contribution(
        run_id=order.run_id,
        round=order.round,
        work_id=ticket.work_id,
        parent=claims.parent,
        sender=order.receiver,
        receiver=order.sender,
        blob=BlobRef(digest=digest, length=body.length, codec=body.codec),
        claimed_loss=claims.loss,
        tokens=ticket.tokens,
        seconds=claims.seconds,
    )


def _read(ticket: IssuedOrder, contribution: Contribution, body: Body, header_limit: int) -> ReceivedContribution:
    """The header against the schema before the data is touched, as `network.blobs.Incoming` does."""
    prefix, _ = body.split(PREFIX) if len(body.header) < PREFIX else (body.header[:PREFIX], None)
    end = PREFIX + header_length(prefix, header_limit)
    if end > body.length:
        raise ProtocolError(f"header ends at {end} of {body.length} bytes", Reason.WRONG_LENGTH)
    header, data = body.split(end)
    layout = read_header(header[PREFIX:], ticket.order.model.schema(), codec.get(body.codec).dtype)
    if end + layout.data_bytes != body.length:
        raise ProtocolError(f"{body.length} bytes, its header means {layout.data_bytes} of data", Reason.WRONG_LENGTH)
    return ReceivedContribution(contribution, layout, data)
