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

    SIGINT, SIGTERM and SIGHUP (a closed terminal) set its `Stop`, so that it can put things in order; a second SIGINT
    leaves the process at once with 130. Under `nohup` SIGHUP is ignored, as asked. Errors of `main` pass through.
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

    handlers: dict[signal.Signals, Callable[[], None]] = {signal.SIGINT: interrupt, signal.SIGTERM: stop.set}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's
        handlers[signal.SIGHUP] = stop.set
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        return await main(stop)
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader may have left; we leave all the same
            stream.flush()
    os._exit(_INTERRUPTED)
