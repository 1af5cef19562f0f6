"""Blobs in memory and in motion: sent as slices of what is there, received into a buffer allocated once.

The receiver hashes in a thread beside receiving, so a digest costs almost no time; a cut connection loses nothing,
since what arrived is kept and the next connection goes on from there.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aiohttp import ClientError, StreamReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError
from blake3 import blake3

from fedgpt2.errors import NetworkError, PeerError, ProtocolError, Reason
from fedgpt2.link.direct_receive import LEAST, Link, receive_directly
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.messages import MANIFEST_CODEC, BlobRef
from fedgpt2.protocol.tensors import PREFIX, header_length

__all__ = ["LONGEST_SLICE", "SLICE_BYTES", "Blob", "Incoming", "pump"]

_FIRST_SLICE = 1 << 12  # taken at once by any connection that is open: what was sent is known to have begun
SLICE_BYTES = 1 << 20
LONGEST_SLICE = 4 << 20  # fewer switches between connections where a link takes 40 MB a second and more
_AT_ONCE = 0.1  # seconds
_SEGMENT = 4 << 20  # bytes hashed at a time: long enough to outweigh the change of thread, short enough for the cache


@dataclass(frozen=True)
class Blob:
    """A whole blob: `ref` names it, `header` and then `data` are its bytes (no header in a manifest)."""

    ref: BlobRef
    header: bytes
    data: memoryview

    @classmethod
    def of(cls, codec: str, header: bytes, data: memoryview, *, base: str | None = None, threads: int = 1) -> "Blob":
        """The blob of these bytes, digest and length worked out here (about 0.15 s a gigabyte and thread)."""
        flat = data.cast("B")
        length = len(header) + flat.nbytes
        digest = blob_digest(header, flat, threads=threads)
        return cls(BlobRef(digest=digest, length=length, codec=codec, base=base), header, flat)

    def slices(self, start: int = 0) -> Iterator[memoryview]:
        """The bytes from `start` on, as views; nothing is copied.

        Of 1 MiB, so that a slow link is seen to move; up to 4 MiB while each is taken at once. The first is short.
        """
        pace = _Pace()
        for part in (memoryview(self.header), self.data.cast("B")):
            first = min(start, part.nbytes)
            start -= first
            while first < part.nbytes:
                piece = part[first : first + pace.size]
                began = time.monotonic()
                yield piece
                pace.taken(piece.nbytes, time.monotonic() - began)
                first += piece.nbytes


class _Pace:
    """How much to hand over at a time: 1 MiB, and more once 8 MiB in a row were each taken at once.

    If the link then slows down, one slice has to pass within the time of progress, and the next is short again.
    """

    def __init__(self) -> None:
        self._least = _FIRST_SLICE
        self._at_once = 0

    @property
    def size(self) -> int:
        """Bytes of the next slice."""
        return min(max(self._least, self._at_once // 8), LONGEST_SLICE)

    def taken(self, count: int, seconds: float) -> None:
        """The last slice, of `count` bytes, was gone after `seconds`."""
        self._least = SLICE_BYTES
        self._at_once = self._at_once + count if seconds < _AT_ONCE else 0


class Incoming:
    """A blob on its way in: fed with chunks from one connection after another until it is whole.

    `open_data` is called once, with the JSON header (b"" for a manifest), before any data is taken. It checks the
    header and returns the destination of the data, `ref.length` less the header's bytes long; it may raise
    ProtocolError. It runs on the event loop, so it should hand out memory, not clear it. After a refusal (header,
    length, digest) the blob starts again from nothing.
    """

    def __init__(self, ref: BlobRef, *, header_limit: int, open_data: Callable[[bytes], memoryview]) -> None:
        """`header_limit`: most bytes of JSON header accepted."""
        self.ref = ref
        self._header_limit = header_limit
        self._open_data = open_data
        self.moved = time.monotonic()  # when a byte last arrived
        self._turn = 0
        self.restart()

    @property
    def have(self) -> int:
        """Bytes that arrived so far, header included."""
        return len(self._head) + self._filled

    def restart(self) -> None:
        """Forget what arrived."""
        self._head = bytearray()
        self._data: memoryview | None = None
        self._filled = 0
        self._hash = _Hash()

    def claim(self) -> int:
        """Begin feeding from a new connection; an older one that still believes to be at it is shut out."""
        self._turn += 1
        return self._turn

    def held(self, turn: int) -> bool:
        """Whether the connection that claimed `turn` is still the one that feeds."""
        return turn == self._turn

    async def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes. Raises ProtocolError for more than `ref.length` and for a bad header."""
        try:
            self._take(memoryview(chunk))
        except PeerError:
            self.restart()
            raise

    def rest(self) -> memoryview:
        """The part of the destination that is not filled yet; empty before the header is here."""
        return memoryview(b"") if self._data is None else self._data[self._filled :]

    def filled(self, count: int) -> None:
        """The next `count` bytes are in the destination."""
        self.moved = time.monotonic()
        if self._data is not None:
            self._filled += count
            self._hash.advance(self._data, self._filled)

    async def finish(self) -> Blob:
        """The whole blob. Raises ProtocolError(wrong_length | digest_mismatch)."""
        data = self._data
        if data is None or self.have != self.ref.length:
            raise ProtocolError(f"{self.have} bytes of {self.ref.length}", Reason.WRONG_LENGTH)
        digest = await self._hash.finish(data)
        if digest != self.ref.digest:
            self.restart()
            raise ProtocolError(f"blob {self.ref.digest} arrived as {digest}", Reason.DIGEST_MISMATCH)
        return Blob(self.ref, bytes(self._head), data)

    def _take(self, view: memoryview) -> None:
        if self.have + view.nbytes > self.ref.length:
            raise ProtocolError(f"more than {self.ref.length} bytes", Reason.WRONG_LENGTH)
        self.moved = time.monotonic()
        while self._data is None and view.nbytes:
            view = self._take_header(view)
        if self._data is not None:
            self._data[self._filled : self._filled + view.nbytes] = view
            self.filled(view.nbytes)

    def _take_header(self, view: memoryview) -> memoryview:
        if self.ref.codec == MANIFEST_CODEC:
            self._open(b"")
            return view
        taken = view[: self._header_end() - len(self._head)]
        self._head += taken
        if len(self._head) >= PREFIX and len(self._head) == self._header_end():
            self._open(bytes(self._head[PREFIX:]))
        return view[taken.nbytes :]

    def _header_end(self) -> int:
        if len(self._head) < PREFIX:
            return PREFIX
        end = PREFIX + header_length(bytes(self._head[:PREFIX]), self._header_limit)
        if end > self.ref.length:
            raise ProtocolError(f"header ends at {end} of {self.ref.length} bytes", Reason.WRONG_LENGTH)
        return end

    def _open(self, header: bytes) -> None:
        data = self._open_data(header).cast("B")
        if len(self._head) + data.nbytes != self.ref.length:
            raise ProtocolError(f"{self.ref.length} bytes, its header means {data.nbytes} of data", Reason.WRONG_LENGTH)
        self._hash.start(bytes(self._head))
        self._data = data


class _Hash:
    """BLAKE3 of a buffer that is being filled, worked out in a thread, one segment at a time."""

    def __init__(self) -> None:
        self._blake = blake3()
        self._hashed = 0
        self._running: asyncio.Future[object] | None = None

    def start(self, header: bytes) -> None:
        self._blake.update(header)

    def advance(self, data: memoryview, filled: int) -> None:
        """Hash what is filled and not hashed, if that is a segment and none is being hashed."""
        busy = self._running is not None and not self._running.done()
        if busy or filled - self._hashed < _SEGMENT:
            return
        self._launch(data[self._hashed : filled])

    async def finish(self, data: memoryview) -> str:
        if self._running is not None:
            await self._running
        if self._hashed < data.nbytes:
            await self._launch(data[self._hashed :])
        return self._blake.hexdigest()

    def _launch(self, part: memoryview) -> "asyncio.Future[object]":
        self._hashed += part.nbytes
        self._running = asyncio.get_running_loop().run_in_executor(None, self._blake.update, part)
        return self._running


async def pump(stream: StreamReader, incoming: Incoming, progress_seconds: float, link: Link | None = None) -> None:
    """Feed `incoming` from an HTTP body until it is whole; a large rest straight from `link`, if one is given.

    Raises NetworkError(timed_out) after `progress_seconds` without a byte, NetworkError(cut_off) for a connection
    that ends or is overtaken by a newer one, ProtocolError as `Incoming.feed` does. What arrived is kept.
    """
    clock = asyncio.get_running_loop()
    turn = incoming.claim()
    try:
        async with asyncio.timeout(progress_seconds) as limit:
            while incoming.have < incoming.ref.length:
                chunk, _ = await stream.readchunk()
                if not chunk or not incoming.held(turn):
                    raise NetworkError(Reason.CUT_OFF, f"{incoming.have} of {incoming.ref.length} bytes arrived")
                await incoming.feed(chunk)
                limit.reschedule(clock.time() + progress_seconds)
                if link is not None and len(incoming.rest()) >= LEAST:
                    await incoming.feed(stream.read_nowait())  # what came with the header
                    limit.reschedule(None)
                    if not await receive_directly(link, incoming, turn, progress_seconds):
                        limit.reschedule(clock.time() + progress_seconds)
                    link = None
    except TimeoutError as error:
        raise NetworkError(Reason.TIMED_OUT, f"transfer stood still for {progress_seconds:g} s") from error
    except (ClientError, RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        raise NetworkError(Reason.CUT_OFF, f"{incoming.have} of {incoming.ref.length} bytes arrived") from error
