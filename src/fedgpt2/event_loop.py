"""The event loop of a program: signals, shutdown, and blocking work in threads."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

__all__ = ["Stop", "Stopped", "entered_off_loop", "off_loop", "run", "until_stopped"]

_INTERRUPTED = 130

P = ParamSpec("P")
T = TypeVar("T")


class Stopped(Exception):
    """The program was told to stop while it waited."""


class Stop:
    """A shutdown request: set once, read from any thread, awaited on the event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Request shutdown. Call it on the event loop's thread only."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether shutdown was requested; safe to call from any thread."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait for the request."""
        await self._event.wait()


async def until_stopped(stop: Stop, work: Awaitable[T]) -> T:
    """Await `work`; raise Stopped as soon as `stop` is set, after `work` was cancelled and has ended.

    A thread started by `off_loop` cannot be cancelled and runs on: it must only read what is shared.
    """
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Stopped
        return task.result()
    finally:
        waiter.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def off_loop(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a daemon thread of its own; return its result or raise its exception.

    Executors join their threads at exit, so a matmul of a minute would delay Ctrl-C by a minute.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on a cancelled caller does not touch it; the thread may finish

    def work() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # passed on unchanged to whoever awaits the future
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await asyncio.wrap_future(future)


@contextlib.asynccontextmanager
async def entered_off_loop(manager: contextlib.AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter `manager` in a thread, and leave it in one."""
    value = await off_loop(manager.__enter__)
    try:
        yield value
    except BaseException as error:
        if not await off_loop(manager.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await off_loop(manager.__exit__, None, None, None)


def run(main: Callable[[Stop], Awaitable[int]]) -> int:
    """Run `main` on a new event loop (uvloop where installed); return its exit code.

    SIGINT, SIGTERM and SIGHUP (a closed terminal) set its `Stop`; a second SIGINT exits at once with 130. Under `nohup`
    SIGHUP stays ignored. Exceptions of `main` pass through.

    What is imported so far is exempt from garbage collection: a pass over torch's objects stops all threads for 150 ms.
    """
    gc.collect()
    gc.freeze()
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
            _exit_now()
        stop.set()

    handlers: dict[signal.Signals, Callable[[], None]] = {signal.SIGINT: interrupt, signal.SIGTERM: stop.set}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        handlers[signal.SIGHUP] = stop.set
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        return await main(stop)
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


def _exit_now() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its reader may be gone
            stream.flush()
    os._exit(_INTERRUPTED)
