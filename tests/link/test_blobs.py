"""Blobs: what is fed in any pieces comes out whole, checked before it is kept, and never longer than announced."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import ProtocolError, Reason
from fedgpt2.link.blobs import LONGEST_SLICE, SLICE_BYTES, Blob, Incoming
from fedgpt2.protocol.messages import BlobRef

HEADER = struct.pack("<Q", 16) + b'{"w": "example"}'


def blob_of(size: int, header: bytes = HEADER, codec: str = "fp32") -> Blob:
    return Blob.of(codec, header, memoryview(np.arange(size, dtype=np.uint32).astype(np.uint8)))


def incoming_of(ref: BlobRef, size: int, seen: list[bytes] | None = None) -> Incoming:
    def open_data(header: bytes) -> memoryview:
        if seen is not None:
            seen.append(header)
        return memoryview(bytearray(size))

    return Incoming(ref, header_limit=1000, open_data=open_data)


def body(blob: Blob, start: int = 0) -> bytes:
    return b"".join(blob.slices(start))


async def refusal(act) -> Reason:
    with pytest.raises(ProtocolError) as caught:
        await act
    return caught.value.reason


@given(st.integers(0, 300), st.integers(0, 400))
def test_slices_are_the_rest_from_any_start(size, start):
    blob = blob_of(size)
    whole = bytes(blob.header) + bytes(blob.data)
    assert body(blob, start) == whole[start:]
    assert blob.ref.length == len(whole)


def test_slices_are_views_of_a_mebibyte_at_first():
    data = np.zeros(3 * SLICE_BYTES // 4 + 1, dtype=np.float32)
    blob = Blob.of("fp32", HEADER, memoryview(data))
    data[-1] = 1.0
    slices = list(blob.slices())
    assert [part.nbytes for part in slices] == [len(HEADER), SLICE_BYTES, SLICE_BYTES, SLICE_BYTES, 4]
    assert bytes(slices[-1]) == np.float32(1.0).tobytes()


def test_slices_grow_while_each_is_taken_at_once_and_not_after_a_wait(monkeypatch):
    blob, now, sizes = blob_of(64 * SLICE_BYTES), [0.0], []
    monkeypatch.setattr("fedgpt2.link.blobs.time", SimpleNamespace(monotonic=lambda: now[0]))
    for part in blob.slices():
        sizes.append(part.nbytes)
        now[0] += 5.0 if sum(sizes) > 40 * SLICE_BYTES else 0.01
    slow = next(i for i in range(len(sizes)) if sum(sizes[: i + 1]) > 40 * SLICE_BYTES)
    assert sizes[1:9] == [SLICE_BYTES] * 8
    assert max(sizes[:slow]) == sizes[slow] == LONGEST_SLICE
    assert {*sizes[slow + 1 : -1]} == {SLICE_BYTES}
    assert sum(sizes) == blob.ref.length


@given(st.integers(0, 300), st.lists(st.integers(1, 60), max_size=30))
async def test_any_pieces_make_the_blob(size, cuts):
    blob, seen = blob_of(size), []
    incoming, whole = incoming_of(blob.ref, size, seen), body(blob)
    for cut in [*cuts, len(whole)]:
        before = incoming.have
        await incoming.feed(whole[before : before + cut])
        assert incoming.have == min(before + cut, len(whole))
    assert await incoming.finish() == blob
    assert seen == [HEADER[8:]]


async def test_long_blobs_are_hashed_in_segments():
    blob = blob_of(13_000_001)
    incoming = incoming_of(blob.ref, blob.data.nbytes)
    for part in blob.slices():
        await incoming.feed(part)
    assert body(await incoming.finish()) == body(blob)


async def test_a_manifest_has_no_header():
    blob, seen = blob_of(100, header=b"", codec="json"), []
    incoming = incoming_of(blob.ref, 100, seen)
    await incoming.feed(body(blob))
    assert (await incoming.finish()).data == blob.data
    assert seen == [b""]


async def test_a_refused_header_stops_the_data():
    def open_data(_: bytes) -> memoryview:
        raise ProtocolError("w", Reason.WRONG_SHAPE)

    blob = blob_of(100)
    incoming = Incoming(blob.ref, header_limit=1000, open_data=open_data)
    await incoming.feed(HEADER[:-1])
    assert await refusal(incoming.feed(HEADER[-1:])) is Reason.WRONG_SHAPE
    assert incoming.have == 0


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (struct.pack("<Q", 1001), Reason.TOO_LARGE),
        (struct.pack("<Q", 2**64 - 1), Reason.TOO_LARGE),
        (struct.pack("<Q", 0), Reason.TOO_LARGE),
        (struct.pack("<Q", 500), Reason.WRONG_LENGTH),
        (struct.pack("<Q", 117) + bytes(116), Reason.WRONG_LENGTH),
    ],
)
async def test_header_lengths_are_checked_before_the_header_is_taken(header, reason):
    ref = blob_of(100).ref
    assert await refusal(incoming_of(ref, 100).feed(header + bytes(ref.length - len(header)))) is reason


@pytest.mark.parametrize("size", [99, 101])
async def test_the_header_must_account_for_the_whole_length(size):
    blob = blob_of(100)
    assert await refusal(incoming_of(blob.ref, size).feed(body(blob))) is Reason.WRONG_LENGTH


async def test_no_byte_more_than_announced_is_taken():
    blob = blob_of(100)
    incoming = incoming_of(blob.ref, 100)
    await incoming.feed(body(blob)[:50])
    assert await refusal(incoming.feed(body(blob)[50:] + b"x")) is Reason.WRONG_LENGTH


@pytest.mark.parametrize("have", [0, 4, 20, 100])
async def test_an_unfinished_blob_is_not_a_blob(have):
    blob = blob_of(100)
    incoming = incoming_of(blob.ref, 100)
    await incoming.feed(body(blob)[:have])
    assert await refusal(incoming.finish()) is Reason.WRONG_LENGTH
    assert incoming.have == have


@given(st.integers(0, 123))
async def test_a_single_wrong_byte_is_noticed_and_the_blob_can_be_sent_again(place):
    blob = blob_of(100)
    wrong = bytearray(body(blob))
    wrong[place] ^= 1
    incoming = incoming_of(blob.ref, 100)
    if place >= 8:  # an earlier one changes the header's length and is refused at once
        await incoming.feed(wrong)
        assert await refusal(incoming.finish()) is Reason.DIGEST_MISMATCH
    else:
        assert isinstance(await refusal(incoming.feed(wrong)), Reason)
    assert incoming.have == 0
    await incoming.feed(body(blob))
    assert await incoming.finish() == blob


def test_a_newer_connection_takes_over():
    incoming = incoming_of(blob_of(100).ref, 100)
    first = incoming.claim()
    assert incoming.held(first)
    second = incoming.claim()
    assert incoming.held(second)
    assert not incoming.held(first)
