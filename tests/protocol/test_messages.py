"""Messages: strict, canonical, and no bytes whatever make their decoder raise anything but ProtocolError."""

import contextlib
import json
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import LINE_LENGTH, Culprit, PeerError, ProtocolError, Reason, printable
from fedgpt2.protocol import messages
from fedgpt2.protocol.digests import work_id
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Envelope, Order, WorkStatus, decode, encode
from fedgpt2.types import ModelShape

KINDS = [
    messages.Accepted,
    messages.Contribution,
    messages.Envelope,
    messages.Failure,
    messages.Info,
    messages.Order,
    messages.Receipt,
    messages.RefusalBody,
    messages.WorkStatus,
]

hex64 = st.text("0123456789abcdef", min_size=64, max_size=64)
natural = st.integers(0, 2**53 - 1)
word = st.text(min_size=1, max_size=128)
line = st.text(max_size=500)
number = st.floats(allow_nan=False, allow_infinity=False)
ref = st.builds(BlobRef, digest=hex64, length=natural, codec=word, base=st.none() | hex64)
envelope = st.builds(
    Envelope,
    kind=st.sampled_from(["info", "order", "contribution", "failure", "receipt"]),
    payload=st.text(),
    signer=word,
    signature=st.text("0123456789abcdef", min_size=128, max_size=128),
)
assignment = st.builds(
    Assignment,
    manifest=hex64,
    manifest_length=natural,
    slot=natural,
    pages=st.lists(natural, max_size=4).map(tuple),
    windows=st.lists(st.lists(natural, max_size=4).map(tuple), max_size=4).map(tuple),
)
shape = st.builds(ModelShape, n_layer=natural, n_head=natural, n_embd=natural, block_size=natural, vocab_size=natural)
parties = {"run_id": hex64, "round": natural, "sender": word, "receiver": word}
order = st.builds(
    Order,
    **parties,
    attempt=natural,
    parent=hex64,
    model=shape,
    state=st.lists(ref, min_size=1, max_size=3).map(tuple),
    assignment=assignment,
    strategy=word,
    answer_codecs=st.lists(word, min_size=1, max_size=3).map(tuple),
    caps=st.builds(Caps, answer_bytes=natural),
    budget_seconds=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
contribution = st.builds(
    messages.Contribution,
    **parties,
    work_id=hex64,
    parent=hex64,
    blob=ref,
    claimed_loss=number,
    tokens=natural,
    seconds=number,
)
receipt = st.builds(
    messages.Receipt,
    **parties,
    work_id=hex64,
    status=word,
    reason=st.none() | word,
    culprit=st.none() | st.sampled_from(list(Culprit)),
    detail=line,
    tokens=natural,
    norm=st.none() | number,
    weight=number,
    score=st.none() | number,
    rating=st.none() | number,
    applied=st.booleans(),
    model=hex64,
    ledger_head=hex64,
)
any_message = st.one_of(
    order,
    contribution,
    receipt,
    envelope,
    st.builds(messages.Failure, **parties, work_id=hex64, reason=word, detail=line),
    st.builds(messages.RefusalBody, reason=word, detail=line),
    st.builds(
        messages.Accepted,
        work_id=hex64,
        lacks=st.lists(st.builds(messages.Lack, digest=hex64, have=natural)).map(tuple),
    ),
    st.builds(WorkStatus, state=st.sampled_from(["pending", "done"]), answer=st.none() | envelope),
    st.builds(
        messages.Info,
        hotkey=word,
        versions=st.lists(st.integers(0, 9)).map(tuple),
        package=word,
        state_codecs=st.lists(word).map(tuple),
        gradient_codecs=st.lists(word).map(tuple),
        strategies=st.lists(word).map(tuple),
        message_bytes=natural,
        challenge=hex64,
    ),
)


@given(any_message)
def test_messages_survive_their_encoding(message):
    assert decode(encode(message), type(message)) == message
    assert decode(encode(message).decode(), type(message)) == message


@given(any_message)
def test_encoding_is_canonical(message):
    data = encode(message)
    tree = json.loads(data)
    again = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert list(tree) == sorted(tree)
    assert json.loads(again) == tree
    outside_strings = "".join(data.decode().split('"')[::2]) if '\\"' not in data.decode() else ""
    assert not set(outside_strings) & set(string.whitespace)


@given(st.binary() | st.text(), st.sampled_from(KINDS))
def test_arbitrary_bytes_are_refused_as_protocol_errors(data, kind):
    with pytest.raises(ProtocolError):
        decode(data, kind)


@given(any_message, st.data())
def test_damaged_messages_decode_or_are_protocol_errors(message, data):
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(bytes(raw), type(message)), type(message))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=5
)


@given(order, st.data())
def test_any_value_in_any_field_decodes_or_is_a_protocol_error(message, data):
    tree = json.loads(encode(message))
    tree[data.draw(st.sampled_from(sorted(tree)))] = data.draw(json_values)
    raw = json.dumps(tree).encode()
    with contextlib.suppress(ProtocolError):
        assert decode(raw, Order).receiver


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"v":' * 50_000, b"1" * 100_000, "\ud800", b"1e999"])
def test_hostile_json_is_refused(data):
    with pytest.raises(ProtocolError):
        decode(data, Order)


def test_unknown_fields_are_refused():
    with pytest.raises(ProtocolError, match="unknown"):
        decode(b'{"reason":"busy","detail":"","unknown":1}', messages.RefusalBody)


@given(contribution)
def test_another_version_is_refused_by_name(message):
    tree = json.loads(encode(message)) | {"v": 2}
    with pytest.raises(ProtocolError) as caught:
        decode(json.dumps(tree), messages.Contribution)
    assert caught.value.reason is Reason.UNSUPPORTED_VERSION


def test_messages_are_immutable():
    body = messages.RefusalBody(reason="busy")
    with pytest.raises(AttributeError):
        body.reason = "idle"  # type: ignore[misc]


@given(envelope)
def test_signed_bytes_begin_with_the_domain_line(message):
    domain, _, payload = message.signed_bytes().partition(b"\n")
    assert domain == f"fedgpt2/1/{message.kind}".encode()
    assert payload == message.payload.encode()


@given(order)
def test_work_id_is_of_the_bytes(message):
    data = encode(message)
    assert work_id(data) == work_id(data.decode())
    assert len(work_id(data)) == 64


@given(order)
def test_orders_count_their_windows_and_know_their_age(message):
    assert message.n_windows == sum(map(len, message.assignment.windows))
    assert message.age == (message.attempt, message.round)


@pytest.mark.parametrize(
    "field", ["run_id", "round", "attempt", "budget_seconds", "state", "answer_codecs", "receiver", "parent"]
)
def test_bounds_of_an_order_are_enforced(field):
    too_bad = {
        "run_id": "A" * 64,
        "round": -1,
        "attempt": 2**53,
        "budget_seconds": 0,
        "state": [],
        "answer_codecs": [],
        "receiver": "",
        "parent": "0" * 63,
    }
    tree = msgspec.to_builtins(plain_order()) | {field: too_bad[field]}
    with pytest.raises(ProtocolError) as caught:
        decode(json.dumps(tree), Order)
    assert caught.value.reason is Reason.BAD_MESSAGE


def plain_order() -> Order:
    zero = "0" * 64
    return Order(
        run_id=zero,
        round=0,
        attempt=0,
        sender="a",
        receiver="b",
        parent=zero,
        model=ModelShape(1, 1, 1, 1),
        state=(BlobRef(digest=zero, length=1, codec="fp32"),),
        assignment=Assignment(manifest=zero, manifest_length=1, slot=0, pages=(0,), windows=((0,),)),
        answer_codecs=("fp32",),
        caps=Caps(answer_bytes=1),
        budget_seconds=1.0,
    )


@given(st.text(st.characters(exclude_categories=[]), max_size=2 * LINE_LENGTH))
def test_whatever_is_said_of_a_failure_can_be_sent_stored_and_shown(text):
    error = PeerError(Reason.BUSY, text)
    body = messages.RefusalBody(reason=error.reason, detail=error.detail)
    assert decode(encode(body), messages.RefusalBody) == body
    assert msgspec.json.decode(json.dumps(error.detail)) == error.detail
    assert str(error).isprintable()
    assert printable(error.detail) == error.detail  # raised again by somebody else it is the same


def test_of_what_a_peer_wrote_all_is_kept_that_can_be_shown():
    error = PeerError(Reason.BUSY, "naïve 模型 🙂 \udcff\x1b[2J\n\u202e.")
    assert error.detail == "naïve 模型 🙂 \ufffd\ufffd[2J\ufffd\ufffd."
    assert str(PeerError(Reason.BUSY)) == "busy"
    assert PeerError(Reason.BUSY, "x" * 501).detail == "x" * 500
