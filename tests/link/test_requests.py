"""Control requests: answered, refused before their bodies are read, and typed whatever comes back."""

import asyncio
import json
import socket
import time

import pytest

from fedgpt2.errors import Culprit, NetworkError, PeerError, ProtocolError, Reason, Refused
from fedgpt2.identity.signing import Signer
from fedgpt2.link import client as client_module
from fedgpt2.link.address import Address
from fedgpt2.link.blobs import Blob
from fedgpt2.link.client import AxonClient, open_session
from fedgpt2.protocol.messages import Info, RefusalBody, encode
from tests.link.conftest import LIMITS, WORK_ID, make_blob, make_incoming, request_head, signer

MESSAGE = signer(1).seal("order", RefusalBody(reason="any message will do"))


async def failure(act) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await act
    return caught.value


@pytest.fixture
def answering(serving):
    """Starts a server that answers one request after another with the given bytes, and notes the requests.

    It keeps the connection after an answer that begins with the line of `ok`, and closes it after any other.
    """

    async def start(*answers: bytes) -> tuple[int, list[bytes]]:
        left, asked = list(answers), []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while left:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                answer = left.pop(0)
                writer.write(answer)
                if not answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: "):
                    return

        return await serving(serve), asked

    return start


def ok(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(body)) + body


async def test_an_axon_introduces_itself(axon, connect):
    client = connect(axon.port)
    info = await client.introduce()
    assert info.hotkey == client.receiver == axon.signer.hotkey


async def test_nothing_is_signed_for_nobody(axon):
    async with open_session(LIMITS) as session:
        client = AxonClient(session, signer(1), Address("127.0.0.1", axon.port), LIMITS)
        with pytest.raises(ValueError, match="not been introduced"):
            await client.cancel(WORK_ID)
        await client.introduce()
        await client.cancel(WORK_ID)


async def test_every_request_of_a_round(axon, connect):
    client = connect(axon.port)
    assert (await client.post_order(MESSAGE)).work_id == WORK_ID
    assert (await client.wait(WORK_ID, 0.2)).state == "pending"
    await client.cancel(WORK_ID)
    await client.deliver_receipt(MESSAGE)
    assert axon.calls == [
        "POST /v1/work",
        f"GET /v1/work/{WORK_ID}?wait=0",
        f"DELETE /v1/work/{WORK_ID}",
        "POST /v1/receipts",
    ]
    assert client.bytes_sent == 2 * len(encode(MESSAGE))


async def test_a_long_poll_may_take_longer_than_other_requests(axon, connect):
    began = time.monotonic()
    assert (await connect(axon.port).wait(WORK_ID, 2)).state == "pending"
    assert time.monotonic() - began > LIMITS.request_seconds


@pytest.mark.parametrize("word", ["", "abc", WORK_ID.upper(), "../../v1/info", WORK_ID + "\n"])
async def test_only_identifiers_go_into_a_target(axon, connect, word):
    with pytest.raises(ValueError, match="64 hex"):
        await connect(axon.port).cancel(word)


async def test_refusals_arrive_as_they_were_given(axon, connect):
    blob, client = make_blob(10), connect(axon.port)
    missing = await failure(client.get_blob(make_incoming(blob)))
    assert (missing.reason, missing.culprit) == (Reason.UNKNOWN_BLOB, Culprit.MINER)
    unknown = await failure(client.cancel("00" * 32))
    assert isinstance(unknown, Refused)
    assert (unknown.reason, unknown.detail) == (Reason.UNKNOWN_WORK, "never heard of it")
    assert (await failure(connect(axon.port, byte=5).cancel(WORK_ID))).reason is Reason.UNKNOWN_CALLER
    assert (await failure(connect(axon.port, receiver=5).cancel(WORK_ID))).reason is Reason.WRONG_RECEIVER


async def test_a_refused_blob_is_not_sent_at_all(axon, connect):
    blob = make_blob(1_000_000)
    client = connect(axon.port)
    assert (await failure(client.put_blob(blob, 0))).reason is Reason.UNKNOWN_BLOB
    assert client.bytes_sent == 0
    axon.expected[blob.ref.digest] = make_incoming(blob)
    assert (await failure(client.put_blob(blob, 64))).reason is Reason.WRONG_LENGTH
    assert client.bytes_sent == 0


async def flood(port: int, head: bytes, chunk: bytes = bytes(1 << 20)) -> tuple[bytes, int, float]:
    """Send `head`, then zeros for as long as anybody takes them: (answer, bytes taken, seconds until the end)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began, taken = time.monotonic(), 0
    writer.write(head)

    async def send() -> None:
        nonlocal taken
        while True:
            writer.write(chunk)
            await writer.drain()
            taken += len(chunk)

    sending = asyncio.create_task(send())
    answer = await reader.readuntil(b"}")
    with pytest.raises(ConnectionError):
        await sending
    writer.transport.abort()
    return answer, taken, time.monotonic() - began


BLOB = make_blob(10_000_000)
BLOB_TARGET = f"/v1/blobs/{BLOB.ref.digest}"
LENGTH = {"Content-Length": str(BLOB.ref.length)}


def put_head(**kwargs) -> bytes:
    return request_head("PUT", BLOB_TARGET, {**LENGTH, **kwargs.pop("extra", {})}, **kwargs)


def stale_head() -> bytes:
    head = put_head()
    nonce = next(line for line in head.split(b"\r\n") if b"Nonce" in line)
    return head.replace(nonce, b"X-Bittensor-Nonce: %d" % (time.time_ns() - 60 * 10**9))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda: put_head(receiver=3), Reason.WRONG_RECEIVER),
        (lambda: put_head(byte=3), Reason.UNKNOWN_CALLER),
        (stale_head, Reason.STALE_REQUEST),
        (lambda: put_head(extra={"Via": "1.1 proxy"}), Reason.FORWARDED),
        (lambda: put_head(extra={"Content-Encoding": "gzip"}), Reason.BAD_MESSAGE),
        (lambda: put_head(extra={"Content-Length": str(BLOB.ref.length + 1)}), Reason.WRONG_LENGTH),
        (lambda: put_head(extra={"Content-Range": "bytes 5-9/10"}), Reason.WRONG_LENGTH),
        (lambda: put_head().replace(b"X-Bittensor-Signature: 0x", b"X-Bittensor-Signature: "), Reason.BAD_MESSAGE),
        (lambda: put_head().replace(BLOB.ref.digest.encode(), b"0" * 64), Reason.BAD_SIGNATURE),
        (lambda: request_head("PUT", "/v1/blobs/" + "0" * 64, LENGTH), Reason.UNKNOWN_BLOB),
        (lambda: request_head("PUT", BLOB_TARGET, {"Transfer-Encoding": "chunked"}), Reason.WRONG_LENGTH),
        (lambda: request_head("POST", "/v1/work", {"Content-Length": "999999999"}), Reason.TOO_LARGE),
        (lambda: request_head("POST", "/v1/work", {"Transfer-Encoding": "chunked"}), Reason.WRONG_LENGTH),
        (lambda: request_head("POST", "/v1/work", {**LENGTH, "X-Forwarded-For": "::1"}), Reason.FORWARDED),
    ],
)
async def test_a_sender_that_never_stops_is_refused_before_its_body_is_read(axon, head, reason):
    incoming = axon.expected[BLOB.ref.digest] = make_incoming(BLOB)
    head = head()
    chunked = b"chunked" in head
    answer, taken, seconds = await flood(axon.port, head, b"100000\r\n" + bytes(1 << 20) if chunked else bytes(1 << 20))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == reason
    assert incoming.have == 0
    assert taken < 24 << 20  # what buffers of the two kernels' ends and of the reader hold; nobody asked for it
    assert seconds < 2.0


async def test_a_replay_is_refused_before_its_body_is_read(axon, connect):
    blob = make_blob(1_000_000)
    axon.expected[blob.ref.digest] = make_incoming(blob)
    target = f"/v1/blobs/{blob.ref.digest}"
    head = request_head("PUT", target, {"Content-Length": str(blob.ref.length)})
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    writer.write(head + b"".join(blob.slices()))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    writer.close()
    again = axon.expected[blob.ref.digest] = make_incoming(blob)
    answer, _, _ = await flood(axon.port, head)
    assert b'"reason":"replay"' in answer
    assert again.have == 0


@pytest.mark.parametrize("sent", [0, 10])
async def test_a_message_that_does_not_arrive_is_given_up(axon, sent):
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    writer.write(request_head("POST", "/v1/work", {"Content-Length": "100"}) + bytes(sent))
    answer = await asyncio.wait_for(reader.read(), LIMITS.request_seconds + 2)
    assert b'"reason":"timed_out"' in answer
    writer.close()


async def test_a_message_that_is_cut_off_leaves_the_axon_well(axon, connect):
    _, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    writer.write(request_head("POST", "/v1/work", {"Content-Length": "100"}) + bytes(10))
    await writer.drain()
    writer.transport.abort()
    assert (await connect(axon.port).post_order(MESSAGE)).work_id == WORK_ID


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (ok(b"<html>", "404 Not Found"), ProtocolError, Reason.BAD_MESSAGE),
        (ok(b'{"reason":"bored","detail":"x"}', "400 Bad"), Refused, Reason.BAD_MESSAGE),
        (ok(b'{"reason":"busy"}', "409 Conflict"), Refused, Reason.BUSY),
        (ok(b'{"reason":"timed_out"}', "400 Bad"), NetworkError, Reason.TIMED_OUT),
        (ok(b'{"reason":"cut_off"}', "400 Bad"), NetworkError, Reason.CUT_OFF),
        (ok(b"", "302 Found\r\nLocation: http://127.0.0.1/"), ProtocolError, Reason.BAD_MESSAGE),
        (ok(b"x" * 4097), ProtocolError, Reason.TOO_LARGE),
        (ok(b"x" * (1 << 17), "500 Oops"), ProtocolError, Reason.TOO_LARGE),
        (ok(b"{}"), ProtocolError, Reason.BAD_MESSAGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", ProtocolError, Reason.BAD_MESSAGE),
        (b"not http at all\r\n\r\n", ProtocolError, Reason.BAD_MESSAGE),
        (b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 100\r\n\r\nshort", NetworkError, Reason.CUT_OFF),
    ],
)
async def test_whatever_answers_the_failure_is_typed(answering, connect, answer, kind, reason):
    port, _ = await answering(answer, answer, answer)
    error = await failure(connect(port).wait(WORK_ID, 0))
    assert type(error) is kind
    assert error.reason is reason
    assert error.culprit is (Culprit.NETWORK if kind is NetworkError else Culprit.MINER)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"challenge": "0" * 64}, Reason.BAD_SIGNATURE),
        ({"hotkey": signer(5).hotkey}, Reason.BAD_SIGNATURE),
    ],
)
async def test_an_introduction_must_sign_our_challenge_as_itself(answering, connect, change, reason):
    fields = {
        "hotkey": signer(2).hotkey,
        "versions": (1,),
        "package": "test",
        "state_codecs": (),
        "gradient_codecs": (),
        "strategies": (),
        "message_bytes": 1,
        "challenge": "1" * 64,
    }
    port, _ = await answering(ok(encode(signer(2).seal("info", Info(**fields | change)))))
    error = await failure(connect(port).introduce())
    assert (error.reason, error.culprit) == (reason, Culprit.MINER)


def head_of_blob(length: int, **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(["HTTP/1.1 206 Partial", f"Content-Length: {length}", *lines]).encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1", Reason.WRONG_LENGTH),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Reason.WRONG_LENGTH),
        (head_of_blob(1) + b"1", Reason.BAD_MESSAGE),
        (head_of_blob(1, Content_Range="bytes 0-0/1") + b"1", Reason.BAD_MESSAGE),
    ],
)
async def test_a_blob_of_another_length_is_the_miner_s_fault(answering, connect, answer, reason):
    port, _ = await answering(answer)
    incoming = make_incoming(make_blob(100))
    error = await failure(connect(port).get_blob(incoming))
    assert (error.reason, error.culprit) == (reason, Culprit.MINER)


async def test_bytes_that_are_no_text_do_not_reach_what_is_said_of_the_answer(answering, connect):
    port, _ = await answering(head_of_blob(1, Content_Range="bytes ?[2J").replace(b"?", b"\xff") + b"1")
    error = await failure(connect(port).get_blob(make_incoming(make_blob(100))))
    assert (error.reason, error.culprit) == (Reason.BAD_MESSAGE, Culprit.MINER)
    assert error.detail == "Content-Range bytes \ufffd[2J, not bytes 0-527/528"


async def test_an_axon_without_ranges_sends_the_whole_blob_again(answering, connect):
    blob = make_blob(100)
    body = b"".join(blob.slices())
    port, asked = await answering(ok(body))
    incoming = make_incoming(blob)
    await incoming.feed(body[:50])
    assert await connect(port).get_blob(incoming) == blob
    assert b"Range: bytes=50-" in asked[0]


async def test_an_axon_that_is_not_there_is_unreachable(connect, unused_tcp_port):
    error = await failure(connect(unused_tcp_port).introduce())
    assert (error.reason, error.culprit) == (Reason.UNREACHABLE, Culprit.NETWORK)
    assert error.detail == "connection refused"


async def test_a_host_without_an_address_is_unreachable(monkeypatch):
    async def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    async with open_session(LIMITS) as session:
        address = Address("no-such-host.invalid", 8091, signer(2).hotkey)
        error = await failure(AxonClient(session, signer(1), address, LIMITS).introduce())
    assert (error.reason, error.detail) == (Reason.UNREACHABLE, "the host has no address")


@pytest.fixture
async def silent(serving):
    """The port of a server that reads and never answers."""

    async def swallow(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    return await serving(swallow)


async def test_an_axon_that_does_not_answer_times_out(silent, connect, monkeypatch):
    monkeypatch.setattr(client_module, "_CONTINUE_SECONDS", 0.2)
    client, blob = connect(silent), make_blob(100)
    for act in (client.introduce, lambda: client.get_blob(make_incoming(blob)), lambda: client.put_blob(blob, 0)):
        began = time.monotonic()
        error = await failure(act())
        assert (error.reason, error.culprit) == (Reason.TIMED_OUT, Culprit.NETWORK)
        assert time.monotonic() - began < LIMITS.request_seconds + 0.5


async def test_an_axon_that_never_invites_gets_the_blob_uninvited(serving, connect, monkeypatch):
    monkeypatch.setattr(client_module, "_CONTINUE_SECONDS", 0.2)
    blob, bodies = make_blob(100), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        bodies.append((b"Expect" in head, await reader.readexactly(blob.ref.length)))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    client = connect(await serving(serve))
    for _ in range(2):
        await client.put_blob(blob, 0)
    assert bodies == [(False, b"".join(blob.slices()))] * 2


async def test_a_body_that_was_cut_within_its_first_mebibyte_is_not_sent_again_from_its_beginning(connect):
    """Such is a manifest on a slow link: no header, no slice written whole, and yet the miner holds some of it."""
    heads = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(100_000)
        await asyncio.sleep(0.1)  # by now the sender waits for room
        writer.transport.abort()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listening.bind(("127.0.0.1", 0))
        async with await asyncio.start_server(cut, sock=listening, limit=1 << 16):
            client = connect(listening.getsockname()[1])
            client._session.connector._socket_factory = _with_a_small_buffer
            manifest = Blob.of("json", b"", memoryview(bytearray(900_000)))
            assert (await failure(client.put_blob(manifest, 0))).reason is Reason.CUT_OFF
    assert len(heads) == 1


def _with_a_small_buffer(address) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    made.setblocking(False)
    return made


async def test_a_receiver_that_stops_reading_times_out(serving, connect):
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.transport.pause_reading()
        await asyncio.sleep(3)

    blob = make_blob(10_000_000)
    client = connect(await serving(stall))
    began = time.monotonic()
    assert (await failure(client.put_blob(blob, 0))).reason is Reason.TIMED_OUT
    assert time.monotonic() - began < 2.0
    assert client.bytes_sent < blob.ref.length


PENDING = ok(b'{"state":"pending"}')
ACCEPTED = ok(b'{"lacks":[],"work_id":"%s"}' % WORK_ID.encode(), "202 Accepted")


@pytest.mark.parametrize(
    ("act", "answer"),
    [
        (lambda client: client.post_order(MESSAGE), ACCEPTED),
        (lambda client: client.wait(WORK_ID, 0), PENDING),
        (lambda client: client.cancel(WORK_ID), ok(b"")),
        (lambda client: client.put_blob(make_blob(1), 0), ok(b"")),
    ],
)
async def test_a_dead_pooled_connection_is_replaced_with_a_fresh_nonce(answering, connect, act, answer):
    port, asked = await answering(PENDING, b"", answer)
    client = connect(port)
    await client.wait(WORK_ID, 0)
    await act(client)
    nonces = [line for head in asked for line in head.split(b"\r\n") if b"Nonce" in line]
    assert len(nonces) == len(set(nonces)) == 3


async def test_a_connection_that_keeps_dying_is_cut_off(answering, connect):
    port, asked = await answering(b"", b"", b"", b"")
    assert (await failure(connect(port).post_order(MESSAGE))).reason is Reason.CUT_OFF
    assert len(asked) == 2


@pytest.mark.parametrize("garbage", [b"\0 this is not HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
async def test_strangers_garbage_is_answered_and_not_logged(axon, caplog, garbage):
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    writer.write(garbage)
    assert b" 400 " in (await reader.read()).splitlines()[0]
    writer.close()
    assert not caplog.records


async def test_our_own_mistakes_are_logged(axon, connect, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", axon.port)
    writer.write(b"GET /v1/info HTTP/1.1\r\nHost: axon\r\n\r\n")  # this axon forgets to check the challenge
    assert b" 500 " in await reader.readline()
    writer.close()
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


async def test_bodies_are_never_text():
    outgoing = client_module._Outgoing(make_blob(1), 0, 1.0)
    with pytest.raises(TypeError, match="not text"):
        outgoing.decode()
    assert isinstance(signer(1), Signer)
