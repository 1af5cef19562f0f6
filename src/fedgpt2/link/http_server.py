"""HTTP pieces of a server: typed refusals, messages and blobs in and out, the listening socket.

Nothing is read of a body before its request is accepted. `Expect: 100-continue` is answered only then, so an honest
sender has not sent it either; one that sent it all the same finds the connection closed after the refusal.
"""

import asyncio
import errno
import logging
import re
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from fedgpt2.errors import NetworkError, PeerError, PortInUseError, ProtocolError, Reason, Refused, SetupError
from fedgpt2.link.blobs import Blob, Incoming, pump
from fedgpt2.protocol.messages import Message, RefusalBody, encode
from fedgpt2.protocol.statuses import http_status

__all__ = [
    "READ_BUFFER",
    "ByteBudget",
    "Server",
    "content_range",
    "hold_body",
    "message_response",
    "read_message",
    "receive_blob",
    "refusal_response",
    "send_blob",
    "taken_response",
]

READ_BUFFER = 1 << 16  # bytes the reader of a body may run ahead (twice that at most)
_KEEP_ALIVE = 75.0  # seconds an idle connection stays open; also the time a caller has for its headers
_LINGER = 0.5  # seconds a refused sender has to read the refusal before its connection is closed
_DROPPED = 2 << 20  # bytes of a refused body that are read meanwhile, and not kept
_ANSWER_SECONDS = 10.0  # a caller has to take an answer that is no blob
_UNREAD_SECONDS = 60.0  # an open connection may stand still with bytes that nobody takes
_MOST_CONNECTIONS = 512  # a validator needs half a dozen
_BACKLOG = 32  # connections accepted at once, whatever there is room for
_RANGE = re.compile(r"bytes=([0-9]{1,16})-", re.ASCII)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Answer(web.Response):
    """An answer to be read soon: one that asks and asks and reads nothing is cut off."""

    _transport: asyncio.Transport | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._transport = request.transport
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await super().write_eof(data)
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()


class _Refusal(_Answer):
    """A refusal that may come before the body: then the connection closes, once the sender had time to read it."""

    _unread: StreamReader | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if not request.content.is_eof():
            self._unread = request.content
            self.force_close()
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        if self._unread is not None:
            await self._drop(self._unread)

    async def _drop(self, body: StreamReader) -> None:
        """Read and drop a little of the body: a connection that is closed before is reset, and the refusal lost."""
        left = _DROPPED
        with suppress(TimeoutError, ConnectionError, web.RequestPayloadError, HttpProcessingError):
            async with asyncio.timeout(_LINGER):
                while left > 0:
                    chunk = await body.readany()
                    if not chunk:
                        return
                    left -= len(chunk)
                if self._transport is not None and not self._transport.is_closing():
                    self._transport.pause_reading()
                await asyncio.sleep(_LINGER)


class ByteBudget:
    """Bytes that several readers may hold at the same time, in all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Hold `count` bytes. Raises Refused(busy) if they are not free; nobody waits for them."""
        if self._held + count > self._most:
            raise Refused(Reason.BUSY, f"bodies of {self._most} bytes are being read before their signatures")
        self._held += count
        try:
            yield
        finally:
            self._held -= count


def refusal_response(error: PeerError) -> web.Response:
    """The answer to a request that is refused: a RefusalBody, with the status of its reason."""
    body = encode(RefusalBody(reason=error.reason.value, detail=error.detail))
    return _Refusal(status=http_status(error.reason), body=body, content_type="application/json")


def message_response(message: Message, status: int = 200) -> web.Response:
    """The answer to a request that is granted."""
    return _Answer(status=status, body=encode(message), content_type="application/json")


async def hold_body(request: web.Request) -> None:
    """`expect_handler` for routes with a body: do not invite it yet; the readers below do, once it is accepted."""


async def read_message(
    request: web.Request, limit: int, *, seconds: float = 10.0, budget: ByteBudget | None = None
) -> bytes:
    """The body of a request that carries a message; while it is read its length is held of the `budget`.

    Raises, before a byte is read: ProtocolError(wrong_length) without Content-Length, ProtocolError(too_large) over
    `limit` bytes, Refused(busy) over the budget; then NetworkError(timed_out | cut_off) if it does not arrive within
    `seconds`.
    """
    length = _announced(request)
    if length > limit:
        raise ProtocolError(f"message of {length} bytes, the limit is {limit}", Reason.TOO_LARGE)
    with budget.hold(length) if budget else nullcontext():
        await _invite(request)
        return await _read_exactly(request, length, seconds)


async def _read_exactly(request: web.Request, length: int, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await request.content.readexactly(length)
    except TimeoutError as error:
        raise NetworkError(Reason.TIMED_OUT, f"message did not arrive within {seconds:g} s") from error
    except (asyncio.IncompleteReadError, web.RequestPayloadError, ConnectionError) as error:
        raise NetworkError(Reason.CUT_OFF, "message was cut off") from error


async def receive_blob(request: web.Request, incoming: Incoming, *, progress_seconds: float) -> Blob:
    """The blob of a PUT, or the rest of it from `incoming.have` on.

    Raises ProtocolError(wrong_length) before a byte is read unless Content-Length is exactly what is missing and,
    for a rest, Content-Range says so; later what `pump` and `Incoming.finish` raise. What arrived is kept.
    """
    length = _announced(request)
    have, whole = incoming.have, incoming.ref.length
    if length != whole - have:
        raise ProtocolError(f"body of {length} bytes, {whole - have} are missing", Reason.WRONG_LENGTH)
    named = request.headers.get("Content-Range")
    if named != content_range(have, whole) and (have or named is not None):
        raise ProtocolError(f"Content-Range {str(named)[:60]}, not {content_range(have, whole)}", Reason.WRONG_LENGTH)
    await _invite(request)
    await pump(request.content, incoming, progress_seconds, request)
    return await incoming.finish()


def taken_response(request: web.Request) -> web.Response:
    """204 for a blob that was taken; the connection closes if its bytes went past the HTTP parser."""
    response = web.Response(status=204)
    if not request.content.is_eof():
        response.force_close()
    return response


async def send_blob(request: web.Request, blob: Blob, *, progress_seconds: float = 30.0) -> web.StreamResponse:
    """Answer with a blob, or with its rest for `Range: bytes=N-` (206; 416 if there is none).

    A receiver that takes no byte for `progress_seconds` is cut off: raises NetworkError(timed_out | cut_off), when
    the connection is beyond an answer.
    """
    whole = blob.ref.length
    asked = _RANGE.fullmatch(request.headers.get("Range", ""))
    start = int(asked[1]) if asked else 0
    if start >= whole:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{whole}"})
    response = web.StreamResponse(status=206 if asked else 200, headers={"Accept-Ranges": "bytes"})
    response.content_type = "application/octet-stream"
    response.content_length = whole - start
    if asked:
        response.headers["Content-Range"] = content_range(start, whole)
    await response.prepare(request)
    try:
        await _write(response, blob, start, progress_seconds)
    except NetworkError:
        if request.transport is not None:
            request.transport.abort()  # nothing may follow half a body, least of all another answer
        raise
    return response


def content_range(start: int, whole: int) -> str:
    """Content-Range of the bytes from `start` to the end of `whole`."""
    return f"bytes {start}-{whole - 1}/{whole}"


async def _write(response: web.StreamResponse, blob: Blob, start: int, progress_seconds: float) -> None:
    clock = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(progress_seconds) as limit:
            for part in blob.slices(start):
                await response.write(part)
                limit.reschedule(clock.time() + progress_seconds)
            await response.write_eof()
    except TimeoutError as error:
        raise NetworkError(Reason.TIMED_OUT, f"nobody read for {progress_seconds:g} s") from error
    except ConnectionError as error:
        raise NetworkError(Reason.CUT_OFF, "the receiver hung up") from error


def _announced(request: web.Request) -> int:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProtocolError("bodies are sent as they are, without Content-Encoding")
    if request.content_length is None:
        raise ProtocolError("send Content-Length", Reason.WRONG_LENGTH)
    return request.content_length


async def _invite(request: web.Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class _OurMistakes(logging.Filter):
    """Keeps the log to errors of this program: a stranger's garbage is answered, not logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | ConnectionError)


def _logger() -> logging.Logger:
    logger = logging.Logger("fedgpt2.link")
    logger.parent = logging.getLogger()
    logger.addFilter(_OurMistakes())
    return logger


def _abandon_unread(transport: asyncio.Transport | None) -> None:
    """Have the kernel end a connection of which nothing is read: closing one waits for that, even for ever."""
    made = transport.get_extra_info("socket") if transport is not None else None
    if made is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * _UNREAD_SECONDS))


class _Full(asyncio.Protocol):
    """Of a connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class Server:
    """An application listening on one host and port (0 takes a free one).

    It leaves its program files to open: at `most` connections, by default half of what a process may have open, idle
    ones are closed, and new ones refused until there is room.
    """

    def __init__(self, app: web.Application, host: str, port: int, most: int = 0) -> None:
        self.host = host
        self._busy: set[asyncio.Transport | None] = set()  # connections with a request in hand
        app.middlewares.insert(0, self._note_busy)
        self._most = most or min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=0.5,
            keepalive_timeout=_KEEP_ALIVE,
            logger=_logger(),
            lingering_time=0.0,  # a refused body is not read, not even to be polite
            read_bufsize=READ_BUFFER,
            auto_decompress=False,
        )
        self.port = port  # the one it listens on, once started
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises PortInUseError, or SetupError if the address is not ours to listen on."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(self._connected, self.host, self.port, backlog=_BACKLOG)
        except OSError as error:
            await self._runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                message = f"port {self.port} of {self.host} is in use; choose another with --axon.port"
                raise PortInUseError(message) from error
            raise SetupError(f"cannot listen on {self.host}:{self.port}: {error.strerror or error}") from error
        self.port = self._listening.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and close every connection, giving requests in flight a second."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()

    def _connected(self) -> asyncio.BaseProtocol:
        """What speaks on a new connection."""
        server = self._runner.server
        if server is None or len(server.connections) < self._most:
            return server() if server is not None else _Full()
        for connection in server.connections:
            transport = connection.transport
            if transport is not None and transport not in self._busy:
                transport.abort()  # not closed, which would wait for the other side to read
        return _Full()

    @web.middleware
    async def _note_busy(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        self._busy.add(transport)
        _abandon_unread(transport)
        try:
            return await handler(request)
        finally:
            self._busy.discard(transport)
