"""The bulk of a large body, read from the socket straight into its place.

On its usual way a byte is copied three times before it is where it belongs (event loop, HTTP parser, reader), in
pieces of at most 256 KiB; receiving then costs twice the CPU of TCP itself. Once the length is agreed and the header
checked nothing is left to parse: the connection is lent to a protocol that lets the kernel write into the destination.

The HTTP parser never sees those bytes, so the connection cannot carry another request and is closed after this one.
"""

import asyncio
from typing import Protocol

from fedgpt2.errors import NetworkError, Reason

__all__ = ["LEAST", "Link", "Place", "receive_directly"]

LEAST = 8 << 20  # bytes still missing that are worth a connection
_MOST = 4 << 20  # bytes taken at a time, so that others get their turn and hashing keeps up


class Link(Protocol):
    """A connection as aiohttp shows it: its request on the server, its connection on the client."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """The socket; None once it is lost."""

    @property
    def protocol(self) -> asyncio.BaseProtocol | None:
        """What usually reads from it."""


class Place(Protocol):
    """Memory that is filled from front to back."""

    def rest(self) -> memoryview:
        """The part that is not filled yet."""
        ...

    def filled(self, count: int) -> None:
        """The next `count` bytes are in place."""
        ...

    def held(self, turn: int) -> bool:
        """Whether the connection that claimed `turn` is still the one that fills."""
        ...


async def receive_directly(link: Link, place: Place, turn: int, progress_seconds: float) -> bool:
    """Fill the rest of `place` from the connection; False, with nothing done, when it cannot be lent.

    Nothing that was received may be waiting anywhere else. Raises NetworkError: timed_out after `progress_seconds`
    without a byte, cut_off when the connection ends or is overtaken. Its owner has it back in every case, to answer on
    it if there is still somebody, and to close it.
    """
    transport, owner = link.transport, link.protocol
    if transport is None or owner is None or transport.is_closing() or not place.rest():
        return False
    reader = _Reader(transport, owner, place, turn)
    _lend(transport, reader)
    try:
        await reader.whole(progress_seconds)
    finally:
        reader.abandon()
        if not transport.is_closing():
            _lend(transport, owner)
    return True


def _lend(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Let `protocol` have what is read; a transport chooses how it reads when reading begins."""
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()


class _Reader(asyncio.BufferedProtocol):
    """Takes exactly what is missing; whatever else happens to the connection is told to its owner."""

    def __init__(self, transport: asyncio.Transport, owner: asyncio.BaseProtocol, place: Place, turn: int) -> None:
        self._clock = asyncio.get_running_loop()
        self._transport = transport
        self._owner = owner
        self._place = place
        self._turn = turn
        self._moved = self._clock.time()
        self._done: asyncio.Future[None] = self._clock.create_future()

    async def whole(self, progress_seconds: float) -> None:
        """Until all is in place. Raises NetworkError."""
        while not self._done.done():
            left = self._moved + progress_seconds - self._clock.time()
            if left <= 0:
                raise NetworkError(Reason.TIMED_OUT, f"transfer stood still for {progress_seconds:g} s")
            await asyncio.wait({self._done}, timeout=left)
        self._done.result()

    def abandon(self) -> None:
        """Nobody waits any more."""
        self._done.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go; somewhere harmless once another connection has taken over."""
        if not self._place.held(self._turn):
            return memoryview(bytearray(1))
        return self._place.rest()[:_MOST]

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        if not self._place.held(self._turn):
            self._end(NetworkError(Reason.CUT_OFF, "a newer connection brings the rest"))
            return
        self._moved = self._clock.time()
        self._place.filled(nbytes)
        if not self._place.rest():
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Too early, or after all was said."""
        self._end(NetworkError(Reason.CUT_OFF, "the connection ended before the body did"))
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        """For the owner."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """For the owner."""
        self._owner.resume_writing()

    def _end(self, error: NetworkError | None) -> None:
        if self._done.done():
            return
        if not self._transport.is_closing():
            self._transport.pause_reading()
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
