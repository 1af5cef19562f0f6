"""The client of one axon: what a validator says to a miner, and what it makes of the answers.

Every failure is typed: Refused (the miner's reason), ProtocolError (what came is not the protocol; the miner's
fault), NetworkError (unreachable, timed out, cut off; nobody's).
"""

import asyncio
import os
import re
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from yarl import URL

from fedgpt2.config import PeerLimits
from fedgpt2.errors import Culprit, NetworkError, PeerError, ProtocolError, Reason, Refused
from fedgpt2.identity.signing import Signer, open_envelope
from fedgpt2.link.address import Address
from fedgpt2.link.blobs import Blob, Incoming, pump
from fedgpt2.link.http_server import READ_BUFFER, content_range
from fedgpt2.protocol.messages import Accepted, Envelope, Info, Message, RefusalBody, WorkStatus, decode, encode
from fedgpt2.types import Hotkey

__all__ = ["AxonClient", "open_session"]

_CONTINUE_SECONDS = 5.0  # how long to wait to be invited to send; some proxies and servers never answer
_REFUSAL_BYTES = 1 << 16
_HEX64 = re.compile(r"[0-9a-f]{64}")

M = TypeVar("M", bound=Message)


def open_session(limits: PeerLimits) -> aiohttp.ClientSession:
    """A session for any number of axons: no cookies, no proxies from the environment, no unpacking, no total timeout.

    Close it with `async with` or `await session.close()`.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(5.0, limits.request_seconds)),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER,
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
    )


class AxonClient:
    """Requests to one axon, signed by `signer` and bound to `receiver`."""

    def __init__(self, session: aiohttp.ClientSession, signer: Signer, address: Address, limits: PeerLimits) -> None:
        """`receiver` starts as the address's pinned hotkey; `introduce` sets it to the one that was proven."""
        self.address = address
        self.receiver = address.hotkey
        self.bytes_sent = 0  # of bodies
        self.bytes_received = 0
        self._session = session
        self._signer = signer
        self._limits = limits
        self._expects = True  # whether the axon answers Expect: 100-continue

    async def introduce(self) -> Info:
        """Who is there: an Info signed over a fresh challenge. Whether that key is acceptable is the caller's rule."""
        challenge = secrets.token_hex(32)
        data = await self._answer("GET", f"/v1/info?challenge={challenge}", signed=False)
        info = open_envelope(_decoded(data, Envelope), "info", Info, signer=None)
        if info.challenge != challenge:
            raise Refused(Reason.BAD_SIGNATURE, "info signs another challenge", Culprit.MINER)
        self.receiver = Hotkey(info.hotkey)
        return info

    async def post_order(self, order: Envelope) -> Accepted:
        """Give work; the answer names the blobs the miner lacks. The same order may be posted again at any time."""
        return _decoded(await self._answer("POST", "/v1/work", encode(order)), Accepted)

    async def wait(self, work_id: str, seconds: float) -> WorkStatus:
        """One long poll of at most `seconds`."""
        target = f"/v1/work/{_hex64(work_id)}?wait={max(0, round(seconds))}"
        return _decoded(await self._answer("GET", target, seconds=seconds), WorkStatus)

    async def cancel(self, work_id: str) -> None:
        """Call work off."""
        await self._answer("DELETE", f"/v1/work/{_hex64(work_id)}")

    async def deliver_receipt(self, receipt: Envelope) -> None:
        """Hand over a signed receipt."""
        await self._answer("POST", "/v1/receipts", encode(receipt))

    async def put_blob(self, blob: Blob, have: int) -> None:
        """Send a blob, or its rest if the miner holds `have` bytes of it.

        After a cut, post the order again: its answer says how much the miner holds by then.
        """
        if have >= blob.ref.length:
            return
        outgoing = _Outgoing(blob, have, self._limits.progress_seconds)
        try:
            await self._put(outgoing)
        except NetworkError as error:
            if not self._worth_repeating(outgoing, error):
                raise
            await self._put(outgoing)
        finally:
            self.bytes_sent += outgoing.sent

    async def get_blob(self, incoming: Incoming) -> Blob:
        """Fetch a blob, or its rest from `incoming.have` on.

        A failed transfer keeps what arrived: call again with the same `incoming` to go on.
        """
        have = incoming.have
        try:
            if have < incoming.ref.length:
                await self._get(incoming)
        finally:
            self.bytes_received += max(0, incoming.have - have)
        with _blaming_miner():
            return await incoming.finish()

    async def _get(self, incoming: Incoming) -> None:
        seconds = self._limits.progress_seconds
        headers = {"Range": f"bytes={incoming.have}-"} if incoming.have else {}
        target = f"/v1/blobs/{_hex64(incoming.ref.digest)}"
        async with self._exchange("GET", target, seconds, headers=headers) as (response, limit):
            limit.reschedule(None)  # `pump` keeps the time from here on
            with _blaming_miner():
                _check_range(response, incoming)
                await pump(response.content, incoming, seconds, response.connection)

    def _worth_repeating(self, outgoing: "_Outgoing", error: NetworkError) -> bool:
        """Whether an upload failed before its first byte for a cause that another attempt may not meet."""
        if outgoing.sent:  # some of it may have arrived: only the miner knows what is missing now
            return False
        if error.reason is Reason.CUT_OFF:  # a pooled connection that had died
            return True
        uninvited = error.reason is Reason.TIMED_OUT and self._expects and not outgoing.consumed
        self._expects = self._expects and not uninvited  # send without asking from now on
        return uninvited

    async def _put(self, outgoing: "_Outgoing") -> None:
        whole, seconds = outgoing.blob.ref.length, self._limits.progress_seconds
        headers = {"Content-Range": content_range(outgoing.have, whole)} if outgoing.have else {}
        if self._expects:
            headers["Expect"] = "100-continue"
            seconds = min(seconds, _CONTINUE_SECONDS)
        async with self._exchange("PUT", f"/v1/blobs/{outgoing.blob.ref.digest}", seconds, outgoing, headers=headers):
            return

    async def _answer(
        self, method: str, target: str, body: bytes = b"", *, seconds: float = 0.0, signed: bool = True
    ) -> bytes:
        """Body of the answer to a control request, which has `seconds` longer than the usual time."""
        try:
            return await self._answer_once(method, target, body, seconds, signed)
        except NetworkError as error:
            # Most likely a pooled connection that had died. aiohttp retries the other methods, by itself.
            if error.reason is not Reason.CUT_OFF or method != "POST":
                raise
        return await self._answer_once(method, target, body, seconds, signed)

    async def _answer_once(self, method: str, target: str, body: bytes, seconds: float, signed: bool) -> bytes:
        allowed = self._limits.request_seconds + seconds
        async with self._exchange(method, target, allowed, body, signed=signed) as (response, _):
            data = await _read(response, self._limits.message_bytes)
        self.bytes_sent += len(body)
        self.bytes_received += len(data)
        return data

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        target: str,
        seconds: float,
        body: "bytes | _Outgoing" = b"",
        *,
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, asyncio.Timeout]]:
        """One request, entered when a 2xx answer begins; `seconds` is the time until then and to the end."""
        sign = self._middleware(body if isinstance(body, bytes) else b"") if signed else None
        with self._typed_failures(seconds):
            async with asyncio.timeout(seconds) as limit:
                if isinstance(body, _Outgoing):
                    body.limit = limit
                async with self._session.request(
                    method,
                    URL(self.address.url + target, encoded=True),
                    data=body or None,
                    headers=headers,
                    middlewares=(sign,) if sign else (),
                    allow_redirects=False,
                ) as response:
                    if not 200 <= response.status < 300:
                        raise await _refusal(response)
                    yield response, limit

    def _middleware(self, signed_body: bytes) -> aiohttp.ClientMiddlewareType:
        """Signs each attempt anew, so that a repeated one is not a replay."""
        receiver = self.receiver
        if receiver is None:
            raise ValueError(f"{self.address} has not been introduced")

        async def sign(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            target = request.url.raw_path_qs
            request.headers.update(self._signer.headers(request.method, target, signed_body, receiver=receiver))
            return await send(request)

        return sign

    @contextmanager
    def _typed_failures(self, seconds: float) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NetworkError(Reason.UNREACHABLE, _why_unreachable(error)) from error
        except TimeoutError as error:
            raise NetworkError(Reason.TIMED_OUT, f"nothing moved for {seconds:g} s") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as error:
            raise NetworkError(Reason.CUT_OFF, str(error) or type(error).__name__) from error
        except aiohttp.ClientError as error:
            raise ProtocolError(str(error)[:200], culprit=Culprit.MINER) from error


class _Outgoing(Payload):
    """The body of a PUT: the rest of a blob, slice by slice, moving on the time limit as it goes."""

    def __init__(self, blob: Blob, have: int, progress_seconds: float) -> None:
        super().__init__(blob, content_type="application/octet-stream")
        self._size = blob.ref.length - have
        self._progress_seconds = progress_seconds
        self.blob = blob
        self.have = have
        self.sent = 0
        self.limit: asyncio.Timeout | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Not text. Raises TypeError."""
        raise TypeError("a blob is not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the slices; a transfer once begun is never repeated by the HTTP library."""
        self._consumed = True
        self._move_limit()
        for part in self.blob.slices(self.have):
            await writer.write(part)
            self.sent += part.nbytes
            self._move_limit()

    def _move_limit(self) -> None:
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time() + self._progress_seconds)


def _why_unreachable(error: Exception) -> str:
    """The system's own word, without the addresses that whoever reports it names anyway."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    if cause is None:
        return "no answer to connecting"
    if isinstance(cause, socket.gaierror):
        return "the host has no address"
    return os.strerror(cause.errno).lower() if cause.errno else "no connection"


def _check_range(response: aiohttp.ClientResponse, incoming: Incoming) -> None:
    whole = incoming.ref.length
    if response.status == 200:
        incoming.restart()  # the whole of it, asked for or not
    elif response.headers.get("Content-Range") != content_range(incoming.have, whole):
        named = response.headers.get("Content-Range", "none")
        raise ProtocolError(f"Content-Range {named[:60]}, not {content_range(incoming.have, whole)}")
    if response.content_length != whole - incoming.have:
        raise ProtocolError(f"{response.content_length} bytes, not {whole - incoming.have}", Reason.WRONG_LENGTH)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise ProtocolError(f"answer of more than {limit} bytes", Reason.TOO_LARGE, Culprit.MINER)
    return bytes(body)


async def _refusal(response: aiohttp.ClientResponse) -> PeerError:
    """What an answer of 300 and more says; words this version does not know are a bad message of the miner's."""
    if response.status < 400:
        return ProtocolError(f"status {response.status}", culprit=Culprit.MINER)
    body = _decoded(await _read(response, _REFUSAL_BYTES), RefusalBody)
    if body.reason not in set(Reason):
        return Refused(Reason.BAD_MESSAGE, f"unknown reason {body.reason}: {body.detail}", Culprit.MINER)
    if body.reason in (Reason.TIMED_OUT, Reason.CUT_OFF):  # the link failed; the miner saw it first
        return NetworkError(Reason(body.reason), body.detail)
    return Refused(Reason(body.reason), body.detail)


@contextmanager
def _blaming_miner() -> Iterator[None]:
    """What a miner sends wrongly is its fault, whatever the reason usually means."""
    try:
        yield
    except ProtocolError as error:
        raise ProtocolError(error.detail, error.reason, Culprit.MINER) from error


def _decoded(data: bytes, kind: type[M]) -> M:
    with _blaming_miner():
        return decode(data, kind)


def _hex64(word: str) -> str:
    if not _HEX64.fullmatch(word):
        raise ValueError(f"{word[:80]!r} is not 64 hex characters")
    return word
