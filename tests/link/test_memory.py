"""An order over a memory link ends as the same bytes do over HTTP, and carries the golden vectors byte for byte."""

import json
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgpt2 import codec
from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, NetworkError, Reason, blamed_on
from fedgpt2.link import receive
from fedgpt2.link.base import ConnectedMiner, IssuedOrder
from fedgpt2.link.blobs import Blob
from fedgpt2.link.dial import DialLink
from fedgpt2.link.memory import Answer, MemoryLink, seal_unsigned, unsigned
from fedgpt2.link.receive import check_contribution
from fedgpt2.protocol.messages import Accepted, Caps, Envelope, Order, WorkStatus, decode, encode
from fedgpt2.protocol.tensors import PREFIX, write_header
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Hotkey, ModelShape
from fedgpt2.validator.admission import admit

from .orders import CONNECTED, FP32, LIMITS, MINER, OTHER, SCHEMA, SIZE, STATE, collect, contribution, issue

ISSUED = issue()


@dataclass
class Miner:
    """A miner in this process that sends a body as it is, and keeps what it was sent."""

    body: Blob
    envelope: bytes = b""  # by default a good contribution, signed
    orders: list[bytes] = field(default_factory=list)
    receipts: list[bytes] = field(default_factory=list)
    open: int = 0

    @asynccontextmanager
    async def work(self, order, blobs):
        assert blobs == {STATE.ref.digest: STATE}
        self.orders.append(order)
        self.open += 1
        try:
            yield Answer(self.envelope or sealed(self.body), self.send)
        finally:
            self.open -= 1

    async def send(self):
        return self.body

    def take_receipt(self, receipt):
        self.receipts.append(receipt)


def sealed(body, signer=MINER, **changes):
    return encode(signer.seal("contribution", contribution(ISSUED, body.ref, **changes)))


@dataclass
class HttpClient:
    """An axon's client whose miner sends a body as it is, in pieces."""

    body: Blob
    envelope: bytes
    bytes_sent: int = 0
    bytes_received: int = 0

    async def post_order(self, envelope):
        return Accepted(work_id=ISSUED.work_id, lacks=())

    async def wait(self, work, seconds):
        return WorkStatus(state="done", answer=decode(self.envelope, Envelope))

    async def get_blob(self, incoming):
        whole = self.body.header + bytes(self.body.data)
        with blamed_on(Culprit.MINER):  # as link.client does
            for first in range(0, len(whole), 500):
                await incoming.feed(whole[first : first + 500])
            return await incoming.finish()


def over_memory(body, envelope=b""):
    return collect(MemoryLink(Miner(body, envelope), CONNECTED, LIMITS.header_bytes), ISSUED)


def over_http(body, envelope=b""):
    return collect(DialLink(HttpClient(body, envelope or sealed(body)), CONNECTED, LIMITS), ISSUED)


def fate(result):
    """All that a round does with a result."""
    (verdict,) = admit([result], Limits(), MemoryPool().lease)
    failure = verdict.failure
    said = (failure.reason, failure.culprit, failure.detail) if failure else None
    return (
        verdict.status,
        result.answered,
        said,
        verdict.norm,
        None if verdict.values is None else verdict.values.tolist(),
    )


def values(fill=1e-2):
    return memoryview(bytearray(FP32.encode(torch.full((SIZE // 4,), fill)))).cast("B")


def framed(text):
    return struct.pack("<Q", len(text)) + text


def body(header=None, data=None, name="fp32"):
    return Blob.of(name, FP32.header(SCHEMA) if header is None else header, values() if data is None else data)


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
async def test_a_body_has_the_same_fate_as_over_http(case):
    sent, reason = CASES[case]
    here, there = await over_memory(sent), await over_http(sent)
    assert fate(here) == fate(there)
    said = fate(here)[2]
    assert (said and said[0]) == reason
    if here.received is not None:
        assert here.received.contribution == there.received.contribution
        assert bytes(here.received.data) == bytes(sent.data)


ENVELOPES = {
    "a stale parent": (sealed(body(), parent="12" * 32), "wrong_parent"),
    "another signer": (sealed(body(), OTHER, sender=OTHER.hotkey), "bad_signature"),
    "another's name": (sealed(body(), OTHER), "bad_signature"),
    "another order": (sealed(body(), round=4), "wrong_order"),
    "unsigned": (seal_unsigned("contribution", contribution(ISSUED, body().ref), MINER.hotkey), "bad_signature"),
}


@pytest.mark.parametrize("case", ENVELOPES)
async def test_an_answer_has_the_same_fate_as_over_http(case):
    envelope, reason = ENVELOPES[case]
    here = await over_memory(body(), envelope)
    assert fate(here) == fate(await over_http(body(), envelope))
    assert (here.failure.reason, here.failure.culprit, here.answered) == (reason, Culprit.MINER, True)


@settings(max_examples=60)
@given(st.data())
async def test_any_header_has_the_same_fate_as_over_http(data):
    header = bytearray(write_header(SCHEMA, data.draw(st.sampled_from(["F32", "BF16"]))))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(header) - 1))
        header[place] = data.draw(st.integers(0, 255))
    header = bytes(header[: data.draw(st.integers(0, len(header)))]) if data.draw(st.booleans()) else bytes(header)
    filled = memoryview(bytearray(SIZE + data.draw(st.integers(-8, 8))))
    sent = Blob.of(data.draw(st.sampled_from(["fp32", "bf16", "other"])), header, filled)
    assert fate(await over_memory(sent)) == fate(await over_http(sent))


async def test_a_body_that_is_not_the_one_named_is_refused():
    miner = Miner(body(), sealed(body(data=values(0.5))))
    result = await collect(MemoryLink(miner, CONNECTED, LIMITS.header_bytes), ISSUED)
    assert (result.failure.reason, result.failure.culprit) == (Reason.DIGEST_MISMATCH, Culprit.MINER)
    assert miner.open == 0


async def test_only_signatures_can_be_left_out():
    other = msgspec.structs.replace(contribution(ISSUED, body().ref), sender=OTHER.hotkey)
    for envelope, reason in (
        (seal_unsigned("contribution", contribution(ISSUED, body().ref), MINER.hotkey), None),
        (seal_unsigned("contribution", contribution(ISSUED, body().ref), OTHER.hotkey), "bad_signature"),
        (seal_unsigned("contribution", other, MINER.hotkey), "bad_signature"),
        (seal_unsigned("info", contribution(ISSUED, body().ref), MINER.hotkey), "bad_message"),
        (b"{}", "bad_message"),
    ):
        link = MemoryLink(Miner(body(), envelope), CONNECTED, LIMITS.header_bytes, verify=unsigned)
        result = await collect(link, ISSUED)
        assert (result.failure and result.failure.reason) == reason


async def test_what_the_miner_raises_is_the_failure_of_its_link():
    miner, gone = Miner(body()), NetworkError(Reason.UNREACHABLE, "not there this round")

    async def fail():
        raise gone

    miner.send = fail
    result = await collect(MemoryLink(miner, CONNECTED, LIMITS.header_bytes), ISSUED)
    assert (result.failure, miner.open) == (gone, 0)


# --- the golden vectors of the wire ---

GOLDEN = Path(__file__).parents[1] / "golden"
PROTOCOL = json.loads((GOLDEN / "protocol.json").read_text(encoding="utf-8"))
NUMBERS = json.loads((GOLDEN / "miner.json").read_text(encoding="utf-8"))
GOLDEN_MINER = ConnectedMiner(Hotkey(PROTOCOL["keys"]["signer"]), "axon")


def golden(kind):
    """A golden message in its golden envelope."""
    payload, signature = PROTOCOL["messages"][kind], PROTOCOL["signatures"][kind]
    return Envelope(kind=kind, payload=payload, signer=PROTOCOL["keys"]["signer"], signature=signature)


def golden_order():
    order = decode(PROTOCOL["messages"]["order"], Order)
    return IssuedOrder(GOLDEN_MINER, order, golden("order"), PROTOCOL["work_id"], order.n_windows * 1024)


class GoldenMiner(Miner):
    """A miner that answers with a golden message."""

    @asynccontextmanager
    async def work(self, order, blobs):
        self.orders.append(order)
        yield Answer(self.envelope, self.send)


def spelled(kind):
    """The bytes of a golden envelope, put together by hand."""
    parts = [f'"kind":"{kind}"', f'"payload":{json.dumps(PROTOCOL["messages"][kind], ensure_ascii=False)}']
    parts += [f'"signature":"{PROTOCOL["signatures"][kind]}"', f'"signer":"{PROTOCOL["keys"]["signer"]}"']
    return ("{" + ",".join(parts) + "}").encode()


async def test_the_golden_order_reaches_the_miner_and_the_golden_failure_comes_back():
    miner = GoldenMiner(body(), spelled("failure"))
    link = MemoryLink(miner, GOLDEN_MINER, LIMITS.header_bytes)
    result = await collect(link, golden_order())
    assert miner.orders == [spelled("order")]
    assert (result.failure.reason, result.answered) == (Reason.DATA_UNAVAILABLE, False)
    assert result.failure.detail == "the miner says: page 12: Größe ≠ manifest"


async def test_the_golden_contribution_is_opened_as_it_is(monkeypatch):
    """Its sender is not the order's receiver: both are written by the one golden key."""
    opened = []
    monkeypatch.setattr(
        receive, "check_contribution", lambda *asked: opened.append(asked) or check_contribution(*asked)
    )
    link = MemoryLink(GoldenMiner(body(), spelled("contribution")), GOLDEN_MINER, LIMITS.header_bytes)
    issued = golden_order()
    result = await collect(link, issued)
    ((order, work, received, _),) = opened
    assert (order, work) == (issued.order, received.work_id)
    assert encode(received).decode() == PROTOCOL["messages"]["contribution"]
    assert (result.failure.reason, result.answered) == (Reason.WRONG_RECEIVER, True)


async def test_the_golden_receipt_reaches_the_miner():
    miner = Miner(body())
    await MemoryLink(miner, GOLDEN_MINER, LIMITS.header_bytes).deliver(golden("receipt"))
    assert miner.receipts == [spelled("receipt")]


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "F32"), ("bf16", "BF16")])
async def test_the_golden_gradient_arrives_byte_for_byte(name, dtype):
    shape = ModelShape(**NUMBERS["model"]["shape"])
    schema, gradient = shape.schema(), NUMBERS["model"]["gradient"]
    flat = torch.tensor([value for key in sorted(gradient) for value in gradient[key]], dtype=torch.float32)
    data = flat.numpy().tobytes() if name == "fp32" else bytes(codec.get("bf16").encode(flat))
    sent = Blob.of(name, write_header(schema, dtype), memoryview(data))
    issued = issue(model=shape, caps=Caps(answer_bytes=sent.ref.length))
    answer = encode(MINER.seal("contribution", contribution(issued, sent.ref, claimed_loss=NUMBERS["model"]["loss"])))
    result = await collect(MemoryLink(Miner(sent, answer), CONNECTED, LIMITS.header_bytes), issued)
    assert bytes(result.received.data) == data
    assert result.received.contribution.blob.digest == blake3(sent.header + data).hexdigest()


async def test_the_golden_bf16_values_arrive_byte_for_byte():
    numbers = [int(bits, 16) for _, bits in NUMBERS["bf16"]]
    data = struct.pack(f"<{len(numbers)}H", *numbers) * SIZE
    sent = Blob.of("bf16", write_header(SCHEMA, "BF16"), memoryview(data)[: SIZE // 2])
    result = await over_memory(sent)
    assert bytes(result.received.data) == data[: SIZE // 2]
