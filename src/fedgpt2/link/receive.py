"""The one way in which a contribution is received, whatever link it comes by.

A signed answer is opened and checked against its order before a byte of the body is asked for; the body's header is
checked against the model's schema before a byte of the data is taken; the digest is checked when the body is complete.
"""

from fedgpt2 import codec
from fedgpt2.errors import Culprit, ProtocolError, Reason, Refused
from fedgpt2.event_loop import off_loop
from fedgpt2.identity.keys import verify as verify_signature
from fedgpt2.identity.signing import Verify, open_envelope
from fedgpt2.link.base import IssuedOrder, Lease, ReceivedContribution, Traffic
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.protocol.messages import Contribution, Envelope, Failure, Order
from fedgpt2.protocol.tensors import PREFIX, Layout
from fedgpt2.types import WorkId

__all__ = ["Receiver", "check_contribution"]

_NOT_THE_MINERS_TO_SAY = (Reason.BUSY, Reason.CANCELLED, Reason.UNREACHABLE)  # of an order it accepted


class Receiver:
    """Receives the answer to one order; what has arrived of it survives a broken link."""

    def __init__(
        self,
        issued: IssuedOrder,
        header_limit: int,
        traffic: Traffic,
        lease: Lease,
        verify: Verify = verify_signature,
    ) -> None:
        """`header_limit`: most bytes of JSON header; `lease` gives the buffer for the data."""
        self._issued = issued
        self._header_limit = header_limit
        self._traffic = traffic
        self._lease = lease
        self._verify = verify
        self._contribution: Contribution | None = None
        self._incoming: Incoming | None = None
        self._layout: Layout | None = None
        self._buffer = memoryview(b"")

    @property
    def have(self) -> int:
        """Bytes of the body that have arrived."""
        return self._incoming.have if self._incoming else 0

    def answer(self, envelope: Envelope) -> Incoming:
        """Open a signed answer; returns where the body that it names goes, with what has arrived of that body.

        Raises Refused for a signed failure, and Refused or ProtocolError for what is wrong with a contribution.
        """
        traffic = self._traffic
        traffic.described = traffic.described or traffic.elapsed()
        self._contribution = contribution = self._open(envelope)
        before = self._incoming.ref if self._incoming else None
        if before is not None and before.digest != contribution.blob.digest:
            traffic.described = traffic.elapsed()  # an invented digest must not date a body seen later
        if self._incoming is None or before != contribution.blob:
            self._incoming = Incoming(contribution.blob, header_limit=self._header_limit, open_data=self._open_data)
        return self._incoming

    async def reserve(self) -> None:
        """Lease the buffer for the body before it is received: the event loop, which fills it, waits for no disk."""
        if self._contribution is not None:
            self._buffer = await off_loop(self._lease, self._contribution.blob.length)

    def contribution(self, body: Blob) -> ReceivedContribution:
        """The contribution, now that its body is complete."""
        if self._contribution is None or self._layout is None:
            raise ProtocolError("a body without a header", culprit=Culprit.MINER)
        self._traffic.received = self._traffic.elapsed()
        return ReceivedContribution(self._contribution, self._layout, body.data)

    def _open(self, envelope: Envelope) -> Contribution:
        issued, miner = self._issued, self._issued.miner.hotkey
        if envelope.kind == "failure":
            failure = open_envelope(envelope, "failure", Failure, signer=miner, verify=self._verify)
            raise Refused(_reason(failure.reason), f"the miner says: {failure.detail}"[:300])
        self._traffic.answered = True
        contribution = open_envelope(envelope, "contribution", Contribution, signer=miner, verify=self._verify)
        check_contribution(issued.order, issued.work_id, contribution, self._header_limit)
        return contribution

    def _open_data(self, header: bytes) -> memoryview:
        """Destination of the data, once its header describes exactly the gradient ordered."""
        if self._contribution is None:
            raise ProtocolError("a body before its description", culprit=Culprit.MINER)
        blob, schema = self._contribution.blob, self._issued.order.model.schema()
        data_bytes = blob.length - PREFIX - len(header)
        self._layout = codec.get(blob.codec).open(header, schema, data_bytes)
        return self._buffer[:data_bytes] if self._buffer.nbytes >= data_bytes else self._lease(data_bytes)


def check_contribution(order: Order, work_id: WorkId, contribution: Contribution, header_limit: int) -> None:
    """Check what a contribution says of itself against its order. Raises Refused with culprit MINER."""
    if (contribution.run_id, contribution.round, contribution.work_id) != (order.run_id, order.round, work_id):
        raise _refused(Reason.WRONG_ORDER, f"answers round {contribution.round}, not this order")
    if (contribution.sender, contribution.receiver) != (order.receiver, order.sender):
        raise _refused(Reason.WRONG_RECEIVER, "names another sender or receiver")
    if contribution.parent != order.parent:
        raise _refused(Reason.WRONG_PARENT, f"a gradient over {contribution.parent[:12]}, not {order.parent[:12]}")
    blob = contribution.blob
    if blob.codec not in order.answer_codecs:
        raise _refused(Reason.UNSUPPORTED_CODEC, f"codec {blob.codec[:40]!r} was not offered")
    least, most = codec.get(blob.codec).size_bounds(order.model.schema())
    if blob.length > order.caps.answer_bytes:
        raise _refused(Reason.TOO_LARGE, f"{blob.length} bytes, the cap is {order.caps.answer_bytes}")
    if not least + PREFIX < blob.length <= most + PREFIX + header_limit:
        raise _refused(Reason.WRONG_LENGTH, f"{blob.length} bytes, {blob.codec} takes {least} to {most} and a header")


def _reason(word: str) -> Reason:
    """Why a miner gave up an order that it had accepted; an unknown or impossible reason is compute_failed."""
    try:
        reason = Reason(word)
    except ValueError:
        return Reason.COMPUTE_FAILED
    return Reason.COMPUTE_FAILED if reason in _NOT_THE_MINERS_TO_SAY else reason


def _refused(reason: Reason, detail: str) -> Refused:
    return Refused(reason, detail, Culprit.MINER)
