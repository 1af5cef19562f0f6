"""Work off the event loop, in a thread that never holds up the exit of the process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

__all__ = ["off_loop"]

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Result of `function`, run in a daemon thread of its own; its exceptions are raised here.

    Executors join their threads at exit; a matmul that takes a minute would then hold Ctrl-C for a minute.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on a cancelled caller leaves it alone; the thread may finish

    def run() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # handed on whole: whoever awaits the future gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=getattr(function, "__name__", "work"), daemon=True).start()
    return await asyncio.wrap_future(future)
