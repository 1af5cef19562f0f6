"""Large bodies read past the HTTP parser, on both event loops that programs run on (see conftest)."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from fedgpt2.errors import PeerError, Reason
from fedgpt2.link import blobs
from tests.link.conftest import make_blob, make_incoming, request_head

FLOATS = 1_000_000


@pytest.fixture(autouse=True)
def straight(monkeypatch):
    """Whether each transfer went straight, in order; even small ones do here."""
    real, went = blobs.receive_directly, []

    async def watched(*arguments):
        went.append(await real(*arguments))
        return went[-1]

    monkeypatch.setattr(blobs, "receive_directly", watched)
    monkeypatch.setattr(blobs, "LEAST", 1 << 16)
    return went


@pytest.fixture(autouse=True)
def no_complaint(caplog):
    """Nothing of a transfer, good or broken, ends in the log of asyncio or aiohttp."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def until(condition, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_blobs_go_both_ways_and_the_axon_answers_on(axon, line, connect, straight):
    client = connect(line.port)
    for seed in range(3):
        blob = make_blob(FLOATS, seed)
        axon.expected[blob.ref.digest] = make_incoming(blob)
        await client.put_blob(blob, 0)
        assert await client.get_blob(make_incoming(blob)) == axon.blobs[blob.ref.digest] == blob
        assert (await client.introduce()).hotkey == axon.signer.hotkey
    assert straight == [True] * 6


async def test_a_download_called_off_is_gone_on_with(axon, line, connect):
    blob, incoming = make_blob(10 * FLOATS), make_incoming(make_blob(10 * FLOATS))
    axon.blobs[blob.ref.digest] = blob
    client = connect(line.port)
    download = asyncio.create_task(client.get_blob(incoming))
    await until(lambda: incoming.have > 1 << 18)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    have = incoming.have
    assert have < blob.ref.length
    await asyncio.sleep(0.05)
    assert incoming.have == have  # nobody writes into the place any more
    assert await client.get_blob(incoming) == blob


@pytest.mark.parametrize("cut", [200_000, 3_999_999])
async def test_a_broken_connection_is_cut_off_and_gone_on_with(axon, line, connect, cut):
    blob, client, incoming = make_blob(FLOATS), connect(line.port), make_incoming(make_blob(FLOATS))
    axon.blobs[blob.ref.digest] = blob
    line.down = cut
    with pytest.raises(PeerError) as caught:
        await client.get_blob(incoming)
    assert caught.value.reason is Reason.CUT_OFF
    assert cut - 1000 < incoming.have < cut
    assert await client.get_blob(incoming) == blob


async def test_a_connection_that_cannot_be_lent_has_its_time_limit_still(straight):
    blob = make_blob(FLOATS)
    incoming, body = make_incoming(blob), b"".join(blob.slices())
    owner = BaseProtocol(asyncio.get_running_loop())
    owner.connection_made(asyncio.Transport())
    stream, closing = StreamReader(owner, 8 << 20), SimpleNamespace(is_closing=lambda: True)
    stream.feed_data(body[:1000])
    link = SimpleNamespace(transport=closing, protocol=owner)  # what it still writes, nobody reads
    async with asyncio.timeout(3):
        with pytest.raises(PeerError) as caught:
            await blobs.pump(stream, incoming, 0.1, link)
    assert caught.value.reason is Reason.TIMED_OUT
    stream.feed_data(body[1000:])
    await blobs.pump(stream, incoming, 0.1, link)
    assert await incoming.finish() == blob
    assert straight == [False]


async def test_a_connection_with_more_than_its_body_takes_only_that(axon, straight):
    """What follows the last byte is not read into the blob; the connection closes after its answer."""
    blob = make_blob(FLOATS)
    axon.expected[blob.ref.digest] = make_incoming(blob)
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    head = request_head("PUT", f"/v1/blobs/{blob.ref.digest}", {"Content-Length": str(blob.ref.length)})
    writer.write(head + b"".join(blob.slices()) + b"GET /v1/info HTTP/1.1\r\nHost: axon\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 204 ")
    assert axon.blobs[blob.ref.digest] == blob
    assert straight == [True]
    writer.close()


@pytest.mark.parametrize(("floats", "closes"), [(FLOATS, True), (100, False)])
async def test_the_answer_says_whether_the_connection_closes(axon, floats, closes):
    blob = make_blob(floats)
    axon.expected[blob.ref.digest] = make_incoming(blob)
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    head = request_head("PUT", f"/v1/blobs/{blob.ref.digest}", {"Content-Length": str(blob.ref.length)})
    writer.write(head + b"".join(blob.slices()))
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert (b"Connection: close" in answer) == closes
