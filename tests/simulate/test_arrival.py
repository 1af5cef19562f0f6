"""An answer without a wire ends as the same bytes do over one."""

import json
import struct
from dataclasses import dataclass

import pytest
import torch
from bittensor.sp_core import Keypair
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgpt2 import codec
from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, PeerError, ProtocolError
from fedgpt2.identity.signing import Signer
from fedgpt2.protocol.digests import blob_digest, work_id
from fedgpt2.protocol.messages import Accepted, Assignment, BlobRef, Caps, Contribution, Order, WorkStatus
from fedgpt2.protocol.tensors import PREFIX, write_header
from fedgpt2.simulate.arrival import Body, Claims, receive
from fedgpt2.types import Hotkey, ModelShape
from fedgpt2.validator.admission import admit
from fedgpt2.validator.exchange import Exchange
from fedgpt2.validator.peers import ConnectedMiner, IssuedOrder, OrderResult, Traffic

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=16)
SCHEMA = SHAPE.schema()
VALIDATOR = Signer(Keypair.create_from_uri("//Validator"))
MINER = Signer(Keypair.create_from_uri("//Miner0"))
FP32 = codec.get("fp32")
SIZE = FP32.data_bytes(SCHEMA)
LIMITS = Limits(header_bytes=4096)


def order():
    return Order(
        run_id="ab" * 32,
        round=3,
        attempt=0,
        sender=VALIDATOR.hotkey,
        receiver=MINER.hotkey,
        parent="cd" * 32,
        model=SHAPE,
        state=(BlobRef(digest="ef" * 32, length=SIZE, codec="fp32"),),
        assignment=Assignment(manifest="01" * 32, manifest_length=9, slot=0, pages=(0,), windows=((0, 1),)),
        answer_codecs=("fp32", "bf16"),
        caps=Caps(answer_bytes=SIZE + LIMITS.header_bytes),
        budget_seconds=5.0,
    )


def ticket():
    written = order()
    envelope = VALIDATOR.seal("order", written)
    return IssuedOrder(ConnectedMiner(Hotkey(MINER.hotkey), "axon"), written, envelope, work_id(envelope.payload), 64)


TICKET = ticket()


@dataclass
class WireClient:
    """A miner behind a wire that sends a body as it is, in pieces."""

    body: Body
    claims: Claims
    bytes_sent: int = 0
    bytes_received: int = 0

    async def post_order(self, envelope):
        return Accepted(work_id=TICKET.work_id, lacks=())

    async def wait(self, work, seconds):
        blob = BlobRef(
            digest=blob_digest(self.body.header, self.body.data), length=self.body.length, codec=self.body.codec
        )
        contribution = Contribution(
            run_id=TICKET.order.run_id,
            round=TICKET.order.round,
            work_id=TICKET.work_id,
            parent=self.claims.parent,
            sender=MINER.hotkey,
            receiver=VALIDATOR.hotkey,
            blob=blob,
            claimed_loss=self.claims.loss,
            tokens=64,
            seconds=self.claims.seconds,
        )
        return WorkStatus(state="done", answer=MINER.seal("contribution", contribution))

    async def get_blob(self, incoming):
        whole = self.body.header + bytes(self.body.data)
        try:
            for first in range(0, len(whole), 500):
                await incoming.feed(whole[first : first + 500])
            return await incoming.finish()
        except ProtocolError as error:  # as network.client does
            raise ProtocolError(error.detail, error.reason, Culprit.MINER) from error


async def over_the_wire(body, claims):
    client = WireClient(body, claims)
    lease = lambda size: memoryview(bytearray(size))  # noqa: E731
    return await Exchange(client, TICKET, {}, LIMITS, Traffic(), lease).run()


def in_process(body, claims):
    try:
        return OrderResult(TICKET, receive(TICKET, body, claims, LIMITS.header_bytes), answered=True)
    except PeerError as failure:
        return OrderResult(TICKET, failure=failure, answered=failure.culprit is Culprit.MINER)


def fate(outcome):
    """All that a round does with an outcome."""
    (verdict,) = admit([outcome], Limits())
    failure = verdict.failure
    said = (failure.reason, failure.culprit, failure.detail) if failure else None
    return verdict.status, said, verdict.norm, None if verdict.values is None else verdict.values.tolist()


def values(fill=1e-2):
    return memoryview(bytearray(FP32.encode(torch.full((SIZE // 4,), fill)))).cast("B")


def framed(text):
    return struct.pack("<Q", len(text)) + text


def body(header=None, data=None, name="fp32"):
    return Body(name, FP32.header(SCHEMA) if header is None else header, values() if data is None else data)


def reordered():
    """Every tensor, but the last one first."""
    entries, start = {}, 0
    for name in sorted(SCHEMA, reverse=True):
        end = start + 4 * torch.Size(SCHEMA[name]).numel()
        entries[name] = {"dtype": "F32", "shape": list(SCHEMA[name]), "data_offsets": [start, end]}
        start = end
    return framed(json.dumps(entries).encode())


def swapped(old, new):
    return framed(FP32.header(SCHEMA)[PREFIX:].replace(old, new))


CLAIMS = Claims(TICKET.order.parent, 9.5, 0.1)
HUGE = memoryview(bytearray(SIZE + LIMITS.header_bytes + 4))
CASES = {
    "good": (body(), None),
    "tensors in another order": (body(reordered()), None),
    "read-only": (body(data=memoryview(bytes(values()))), None),
    "NaN": (body(data=values(float("nan"))), "non_finite"),
    "Inf": (body(data=values(float("inf"))), "non_finite"),
    "beyond the bound": (body(data=values(1e9)), "norm_bound"),
    "oversize": (body(data=HUGE), "too_large"),
    "too long": (body(data=memoryview(bytearray(SIZE + 4))), "wrong_length"),
    "too short": (body(data=values()[:-4]), "wrong_length"),
    "hardly anything": (body(b"", values()[:4]), "wrong_length"),
    "wrong names": (body(swapped(b"wte.weight", b"wte.wait")), "wrong_names"),
    "wrong shape": (body(swapped(b"[16,4]", b"[4,16]")), "wrong_shape"),
    "wrong dtype": (body(swapped(b'"F32"', b'"I32"')), "wrong_dtype"),
    "no JSON": (body(framed(b"not json")), "bad_message"),
    "a list": (body(framed(b"[]" + b" " * 6)), "bad_message"),
    "deep": (body(framed(b"[" * 4000)), "bad_message"),
    "a header over the limit": (body(struct.pack("<Q", 1 << 40) + b" " * 100), "too_large"),
    "a header that goes on into the data": (body(struct.pack("<Q", SIZE) + FP32.header(SCHEMA)[8:]), "bad_message"),
    "a header longer than the body": (body(struct.pack("<Q", 4000) + b" " * 100, values()), "wrong_length"),
    "a header cut short": (body(struct.pack("<Q", 40) + FP32.header(SCHEMA)[8:]), "bad_message"),
    "no header": (body(b"", memoryview(bytearray(SIZE + 64))), "too_large"),
    "half a length": (body(b"\x10\x00", memoryview(bytearray(SIZE + 64))), "bad_message"),
    "a codec not offered": (body(name="int8"), "unsupported_codec"),
    "a codec's name without end": (body(name="x" * 200), "bad_message"),
    "another codec's body": (body(name="bf16"), "wrong_dtype"),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_body_has_the_same_fate_as_over_the_wire(case):
    sent, reason = CASES[case]
    here, there = in_process(sent, CLAIMS), await over_the_wire(sent, CLAIMS)
    assert fate(here) == fate(there)
    assert here.answered == there.answered
    said = fate(here)[1]
    assert (said and said[0]) == reason
    if here.answer is not None:
        assert here.answer.contribution == there.answer.contribution


async def test_a_stale_parent_has_the_same_fate_as_over_the_wire():
    claims = Claims("12" * 32, 9.5, 0.1)
    assert fate(in_process(body(), claims)) == fate(await over_the_wire(body(), claims))
    assert in_process(body(), claims).failure.reason == "wrong_parent"


@settings(max_examples=60)
@given(st.data())
async def test_any_header_has_the_same_fate_as_over_the_wire(data):
    header = bytearray(write_header(SCHEMA, data.draw(st.sampled_from(["F32", "BF16"]))))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(header) - 1))
        header[place] = data.draw(st.integers(0, 255))
    header = bytes(header[: data.draw(st.integers(0, len(header)))]) if data.draw(st.booleans()) else bytes(header)
    filled = memoryview(bytearray(SIZE + data.draw(st.integers(-8, 8))))
    sent = Body(data.draw(st.sampled_from(["fp32", "bf16", "other"])), header, filled)
    assert fate(in_process(sent, CLAIMS)) == fate(await over_the_wire(sent, CLAIMS))


def test_an_honest_body_is_looked_at_where_it_is():
    sent = body()
    assert receive(TICKET, sent, CLAIMS, LIMITS.header_bytes).data.obj is sent.data.obj
