"""An axon made of the shared HTTP pieces alone, a client of it, and a line between them that can be cut."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import uvloop
from aiohttp import web
from bittensor.sp_core import CRYPTO_SR25519, Keypair

from fedgpt2.config import Limits
from fedgpt2.errors import PeerError, Reason, Refused
from fedgpt2.identity.auth import Authenticator
from fedgpt2.identity.signing import Signer
from fedgpt2.link.address import Address
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.link.client import AxonClient, open_session
from fedgpt2.link.http_server import (
    Handler,
    Server,
    hold_body,
    read_message,
    receive_blob,
    refusal_response,
    send_blob,
    taken_response,
)
from fedgpt2.protocol.messages import Accepted, Envelope, Info, Lack, WorkStatus, decode, encode
from fedgpt2.protocol.tensors import write_header


def pytest_asyncio_loop_factories(config, item):
    """Large transfers run on uvloop too, as programs do where it is installed: its sockets are of another make."""
    both = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return both if item.path.name == "test_straight.py" else {"asyncio": asyncio.new_event_loop}


LIMITS = Limits(message_bytes=4096, header_bytes=4096, request_seconds=1.0, progress_seconds=0.5)
WORK_ID = "ab" * 32


def signer(byte: int) -> Signer:
    return Signer(Keypair.create_from_seed(bytes([byte]) * 32, CRYPTO_SR25519))


def make_blob(floats: int, seed: int = 0) -> Blob:
    """A blob of one tensor."""
    data = np.random.default_rng(seed).integers(0, 256, 4 * floats, dtype=np.uint8)
    return Blob.of("fp32", write_header({"w": (floats,)}, "F32"), memoryview(data))


def make_incoming(blob: Blob) -> Incoming:
    """The receiving end of such a blob."""
    data = memoryview(bytearray(blob.data.nbytes))
    return Incoming(blob.ref, header_limit=LIMITS.header_bytes, open_data=lambda _: data)


def request_head(method: str, target: str, extra: dict[str, str], byte: int = 1, receiver: int = 2) -> bytes:
    """A signed request up to its empty line, for a raw socket."""
    headers = signer(byte).headers(method, target, receiver=signer(receiver).hotkey) | {"Host": "axon"} | extra
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every PeerError of a handler becomes its refusal, as a miner's axon does it."""
    try:
        return await handler(request)
    except PeerError as error:
        return refusal_response(error)


@dataclass
class Axon:
    """A miner's axon without a miner: blobs in, blobs out, canned answers."""

    signer: Signer
    authenticator: Authenticator
    expected: dict[str, Incoming] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failures: list[PeerError] = field(default_factory=list)
    port: int = 0

    def app(self) -> web.Application:
        app = web.Application(middlewares=[refusals])
        app.add_routes(
            [
                web.get("/v1/info", self.info),
                web.post("/v1/work", self.take, expect_handler=hold_body),
                web.get("/v1/work/{id}", self.poll),
                web.delete("/v1/work/{id}", self.drop),
                web.put("/v1/blobs/{digest}", self.put, expect_handler=hold_body),
                web.get("/v1/blobs/{digest}", self.get),
                web.post("/v1/receipts", self.receipt, expect_handler=hold_body),
            ]
        )
        return app

    async def info(self, request: web.Request) -> web.Response:
        info = Info(
            hotkey=self.signer.hotkey,
            versions=(1,),
            package="test",
            state_codecs=("fp32",),
            gradient_codecs=("fp32",),
            strategies=("mean_gradient",),
            message_bytes=LIMITS.message_bytes,
            challenge=request.query["challenge"],
        )
        return web.Response(body=encode(self.signer.seal("info", info)))

    async def message(self, request: web.Request) -> Envelope:
        self.authenticator.check_headers(request.headers, request.method, request.raw_path)
        body = await read_message(request, LIMITS.message_bytes, seconds=LIMITS.request_seconds)
        self.verify(request, body)
        return decode(body, Envelope)

    def verify(self, request: web.Request, body: bytes = b"") -> None:
        self.authenticator.verify(request.headers, hashlib.sha256(body).hexdigest(), request.method, request.raw_path)
        self.calls.append(f"{request.method} {request.raw_path}")

    async def take(self, request: web.Request) -> web.Response:
        await self.message(request)
        lacks = tuple(Lack(digest=digest, have=inc.have) for digest, inc in self.expected.items())
        return web.Response(status=202, body=encode(Accepted(work_id=WORK_ID, lacks=lacks)))

    async def poll(self, request: web.Request) -> web.Response:
        self.verify(request)
        await asyncio.sleep(float(request.query["wait"]))
        return web.Response(body=encode(WorkStatus(state="pending")))

    async def drop(self, request: web.Request) -> web.Response:
        self.verify(request)
        if request.match_info["id"] != WORK_ID:
            raise Refused(Reason.UNKNOWN_WORK, "never heard of it")
        return web.Response(status=204)

    async def receipt(self, request: web.Request) -> web.Response:
        await self.message(request)
        return web.Response(status=204)

    async def put(self, request: web.Request) -> web.Response:
        self.verify(request)
        digest = request.match_info["digest"]
        if digest not in self.expected:
            raise Refused(Reason.UNKNOWN_BLOB)
        try:
            blob = await receive_blob(request, self.expected[digest], progress_seconds=LIMITS.progress_seconds)
        except PeerError as error:
            self.failures.append(error)
            raise
        self.blobs[digest] = blob
        return taken_response(request)

    async def get(self, request: web.Request) -> web.StreamResponse:
        self.verify(request)
        blob = self.blobs.get(request.match_info["digest"])
        if blob is None:
            raise Refused(Reason.UNKNOWN_BLOB)
        try:
            return await send_blob(request, blob, progress_seconds=LIMITS.progress_seconds)
        except PeerError as error:
            self.failures.append(error)
            raise


@dataclass
class Line:
    """A TCP line to a port that carries so many bytes a direction and then breaks, once."""

    target: int
    up: int | None = None
    down: int | None = None
    port: int = 0
    opened: int = 0

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        ways = [self.carry(reader, there_writer, "up"), self.carry(there_reader, writer, "down")]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for end in (writer, there_writer):
                end.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while data := await reader.read(1 << 16):
            left = getattr(self, way)
            if left is not None:
                data = data[:left]
                setattr(self, way, left - len(data))
            writer.write(data)
            await writer.drain()
            if left is not None and getattr(self, way) == 0:
                setattr(self, way, None)
                return


@pytest.fixture
async def axon() -> AsyncIterator[Axon]:
    me = signer(2)
    axon = Axon(me, Authenticator(me.hotkey, allowed=frozenset({signer(1).hotkey}), proxies=False))
    server = Server(axon.app(), "127.0.0.1", 0)
    await server.start()
    axon.port = server.port
    yield axon
    await server.stop()


@pytest.fixture
async def serving() -> AsyncIterator[object]:
    """Starts servers of one coroutine a connection, which end with the test: `port = await serving(handler)`."""
    servers, tasks = [], []

    async def start(handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.append(asyncio.current_task())
            try:
                await handler(reader, writer)
            except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
                pass  # the task of a stream complains about a cancellation
            finally:
                writer.close()

        servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        return servers[-1].sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.01)  # sockets close in the loop's next turn


@pytest.fixture
async def line(axon, serving) -> Line:
    line = Line(axon.port)
    line.port = await serving(line.connect)
    return line


@pytest.fixture
async def connect() -> AsyncIterator[object]:
    """Makes clients of ports on this machine; their session ends with the test."""
    async with open_session(LIMITS) as session:

        def client(port: int, byte: int = 1, receiver: int = 2) -> AxonClient:
            address = Address("127.0.0.1", port, signer(receiver).hotkey)
            return AxonClient(session, signer(byte), address, LIMITS)

        yield client
