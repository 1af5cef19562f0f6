"""How a process ends."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["leave", "leaving_at_once"]

_INTERRUPTED = 130


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """In here Ctrl-C ends the process on the spot; for imports, which have nothing to put in order.

    An import runs callbacks of weak references, and a KeyboardInterrupt raised in one of these is printed and
    forgotten: the program would go on as if nobody had asked it to end.
    """
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not somebody else's, nor ignored
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: int) -> NoReturn:
    """End the process with `code`, now.

    A compute thread may be in the middle of a matmul that nobody waits for any more. Taking the interpreter down
    around it makes the C++ runtime abort; what had to be written is written, so the process just ends.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # its reader has left or its disk is full: nothing more to say, and nothing to flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or 1
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)
