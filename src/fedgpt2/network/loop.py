"""The event loop of a program: uvloop where installed, and what Ctrl-C does."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable

__all__ = ["Stop", "run"]

_INTERRUPTED = 130


class Stop:
    """Set once the program is to end; whoever works looks at it or waits for it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Ask the program to end. From the event loop's thread only."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the program is to end; may be read from any thread."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Until the program is to end."""
        await self._event.wait()


def run(main: Callable[[Stop], Awaitable[int]]) -> int:
    """Run `main` to its exit code.

    SIGINT and SIGTERM set its `Stop`, so that it can put things in order; a second SIGINT leaves the process at once
    with 130. Errors of `main` pass through.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_with_signals(main))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _with_signals(main: Callable[[Stop], Awaitable[int]]) -> int:
    stop = Stop()

    def interrupt() -> None:
        if stop.is_set():
            _leave()
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        return await main(stop)
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader may have left; we leave all the same
            stream.flush()
    os._exit(_INTERRUPTED)
