"""Blobs over real sockets: whole, cut and resumed both ways, stalled, overtaken, wrong."""

import asyncio
import contextlib
import time

import pytest

from fedgpt2.errors import Culprit, PeerError, Reason
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.protocol.messages import RefusalBody
from tests.link.conftest import LIMITS, make_blob, make_incoming, request_head, signer

FLOATS = 1_000_000  # 4 MB: more than the buffers on the way hold
ORDER = signer(1).seal("order", RefusalBody(reason="any message will do"))


@pytest.fixture(params=["parsed", "straight"], autouse=True)
def way_in(request, monkeypatch):
    """How the bulk of a large blob arrives: through the HTTP parser, or past it."""
    monkeypatch.setattr("fedgpt2.link.blobs.LEAST", 1 << 60 if request.param == "parsed" else 1 << 16)
    return request.param


async def failure(act) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await act
    return caught.value


async def until(condition, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_blob_goes_out_and_comes_back(axon, connect):
    blob, client = make_blob(FLOATS), connect(axon.port)
    axon.expected[blob.ref.digest] = make_incoming(blob)
    await client.put_blob(blob, 0)
    back = await client.get_blob(make_incoming(blob))
    assert back == axon.blobs[blob.ref.digest] == blob
    assert client.bytes_sent == client.bytes_received == blob.ref.length


async def test_small_blobs_share_one_connection(axon, line, connect):
    client = connect(line.port)
    for seed in range(5):
        blob = make_blob(100, seed)
        axon.expected[blob.ref.digest] = make_incoming(blob)
        await client.put_blob(blob, 0)
        assert (await client.get_blob(make_incoming(blob))).data == blob.data
    assert line.opened == 1


async def test_what_is_held_whole_is_not_sent(axon, connect):
    blob, client = make_blob(100), connect(axon.port)
    await client.put_blob(blob, blob.ref.length)
    incoming = make_incoming(blob)
    for part in blob.slices():
        await incoming.feed(part)
    assert await client.get_blob(incoming) == blob
    assert (client.bytes_sent, client.bytes_received, axon.calls) == (0, 0, [])


@pytest.mark.parametrize("cut", [1000, 1_500_000, 3_999_999])
async def test_a_cut_upload_goes_on_where_it_broke(axon, line, connect, cut):
    blob, client = make_blob(FLOATS), connect(line.port)
    incoming = axon.expected[blob.ref.digest] = make_incoming(blob)
    line.up = cut
    assert (await failure(client.put_blob(blob, 0))).reason is Reason.CUT_OFF
    await until(lambda: axon.failures)
    accepted = await client.post_order(ORDER)
    have = accepted.lacks[0].have
    assert cut - 1000 < have == incoming.have < cut
    sent = client.bytes_sent
    await client.put_blob(blob, have)
    assert axon.blobs[blob.ref.digest] == blob
    assert client.bytes_sent - sent == blob.ref.length - have


@pytest.mark.parametrize("cut", [1000, 1_500_000, 3_999_999])
async def test_a_cut_download_goes_on_where_it_broke(axon, line, connect, cut):
    blob, client, incoming = make_blob(FLOATS), connect(line.port), make_incoming(make_blob(FLOATS))
    axon.blobs[blob.ref.digest] = blob
    line.down = cut
    assert (await failure(client.get_blob(incoming))).reason is Reason.CUT_OFF
    assert cut - 1000 < incoming.have < cut
    assert await client.get_blob(incoming) == blob
    assert client.bytes_received == blob.ref.length


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_connection_that_dies_before_the_body_is_replaced_unnoticed(axon, line, connect, way):
    blob, client = make_blob(100), connect(line.port)
    axon.expected[blob.ref.digest] = make_incoming(blob)
    setattr(line, way, 1)
    await client.put_blob(blob, 0)
    setattr(line, way, 1)
    assert await client.get_blob(make_incoming(blob)) == blob
    assert line.opened == 3


async def test_a_sender_that_stalls_ends_in_time_and_what_it_sent_is_kept(axon):
    blob = make_blob(FLOATS)
    incoming = axon.expected[blob.ref.digest] = make_incoming(blob)
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    target, body = f"/v1/blobs/{blob.ref.digest}", b"".join(blob.slices())
    began = time.monotonic()
    writer.write(request_head("PUT", target, {"Content-Length": str(blob.ref.length)}) + body[:1_000_000])
    answer = await reader.read()
    assert LIMITS.progress_seconds <= time.monotonic() - began < 4 * LIMITS.progress_seconds
    assert b'"reason":"timed_out"' in answer
    assert incoming.have == 1_000_000
    writer.close()


async def test_a_receiver_that_stalls_is_cut_off_in_time(axon):
    blob = make_blob(10 * FLOATS)
    axon.blobs[blob.ref.digest] = blob
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port, limit=1 << 10)
    writer.write(request_head("GET", f"/v1/blobs/{blob.ref.digest}", {}))
    await until(lambda: axon.failures)
    assert axon.failures[0].reason is Reason.TIMED_OUT
    arrived = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1 << 20):
            arrived += part
    assert len(arrived) < blob.ref.length
    assert arrived.count(b"HTTP/1.1") == 1  # no second answer inside the body
    writer.close()


async def test_a_receiver_that_hangs_up_ends_the_transfer(axon):
    blob = make_blob(10 * FLOATS)
    axon.blobs[blob.ref.digest] = blob
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port, limit=1 << 10)
    writer.write(request_head("GET", f"/v1/blobs/{blob.ref.digest}", {}))
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    await until(lambda: axon.failures)
    assert axon.failures[0].reason is Reason.CUT_OFF


async def test_a_newer_connection_overtakes_one_that_hangs(axon, connect):
    blob = make_blob(FLOATS)
    incoming = axon.expected[blob.ref.digest] = make_incoming(blob)
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    target, body = f"/v1/blobs/{blob.ref.digest}", b"".join(blob.slices())
    writer.write(request_head("PUT", target, {"Content-Length": str(blob.ref.length)}) + body[:500_000])
    await until(lambda: incoming.have == 500_000)
    upload = asyncio.create_task(connect(axon.port).put_blob(blob, 500_000))
    await until(lambda: incoming.have > 500_000)
    writer.write(body[500_000:600_000])
    await upload
    assert axon.blobs[blob.ref.digest] == blob
    assert b'"reason":"cut_off"' in await reader.read()
    writer.close()


async def test_an_upload_with_a_wrong_byte_is_refused_and_can_be_repeated(axon, connect):
    blob, client = make_blob(FLOATS), connect(axon.port)
    wrong = Blob(blob.ref, blob.header, memoryview(bytes(blob.data[:-1]) + b"?"))
    axon.expected[blob.ref.digest] = make_incoming(blob)
    assert (await failure(client.put_blob(wrong, 0))).reason is Reason.DIGEST_MISMATCH
    await client.put_blob(blob, 0)
    assert axon.blobs[blob.ref.digest] == blob


async def test_a_download_with_a_wrong_byte_is_the_miner_s_fault(axon, connect):
    blob, client = make_blob(FLOATS), connect(axon.port)
    axon.blobs[blob.ref.digest] = Blob(blob.ref, blob.header, memoryview(bytes(blob.data[:-1]) + b"?"))
    error = await failure(client.get_blob(make_incoming(blob)))
    assert (error.reason, error.culprit) == (Reason.DIGEST_MISMATCH, Culprit.MINER)


async def test_a_bad_header_is_refused_before_the_data_is_read(axon, connect):
    blob, taken = make_blob(10 * FLOATS), []
    axon.blobs[blob.ref.digest] = blob

    def open_data(header: bytes) -> memoryview:
        from fedgpt2.protocol.tensors import read_header

        taken.append(header)
        return memoryview(bytearray(read_header(header, {"w": (1,)}, "F32").data_bytes))

    client = connect(axon.port)
    incoming = Incoming(blob.ref, header_limit=LIMITS.header_bytes, open_data=open_data)
    error = await failure(client.get_blob(incoming))
    assert (error.reason, error.culprit) == (Reason.WRONG_SHAPE, Culprit.MINER)
    assert len(taken) == 1
    assert client.bytes_received == 0


@pytest.mark.parametrize(
    ("asked", "status", "start"),
    [("bytes=0-", 206, 0), ("bytes=7-", 206, 7), ("bytes=0-5", 200, 0), ("bytes=-5", 200, 0), ("lines=1-", 200, 0)],
)
async def test_ranges_are_answered_as_http_wants(axon, asked, status, start):
    blob = make_blob(10)
    axon.blobs[blob.ref.digest] = blob
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    headers = {"Range": asked, "Connection": "close"}
    writer.write(request_head("GET", f"/v1/blobs/{blob.ref.digest}", headers))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body == b"".join(blob.slices(start))
    assert (b"Content-Range: bytes %d-" % start in head) == (status == 206)
    writer.close()


async def test_a_range_beyond_the_end_is_not_satisfiable(axon):
    blob = make_blob(10)
    axon.blobs[blob.ref.digest] = blob
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    headers = {"Range": f"bytes={blob.ref.length}-", "Connection": "close"}
    writer.write(request_head("GET", f"/v1/blobs/{blob.ref.digest}", headers))
    head = (await reader.read()).partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 416 ")
    assert b"Content-Range: bytes */%d" % blob.ref.length in head
    writer.close()
