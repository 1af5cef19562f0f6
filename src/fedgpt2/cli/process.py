"""Start and end of a program: streams, OpenMP's busy waiting, interrupts during imports, exit."""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["SPIN_COUNT", "exit_on_interrupt", "exit_process", "limit_spinning", "prepare_streams"]

SPIN_COUNT = "GOMP_SPINCOUNT"
_SPINS = (
    "3000"  # alone on its cores a gradient of nano takes no longer; 1000 spins cost a tenth (benchmarks/crowded.py)
)

_INTERRUPTED = 130


def prepare_streams() -> None:
    """Make stdout and stderr usable: replace closed ones, escape characters that their encoding lacks.

    An hour of training must not end in a UnicodeEncodeError.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the program was started with it closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open until the process ends)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def limit_spinning() -> None:
    """Limit OpenMP's busy waiting unless the environment sets it; call this before torch is imported.

    GNU OpenMP spins 300,000 iterations before a waiting thread sleeps. With several programs on one machine that is
    milliseconds of a core at each of the thousands of OpenMP barriers of a backward pass.
    """
    if not {SPIN_COUNT, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ[SPIN_COUNT] = _SPINS


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Context in which Ctrl-C exits the process immediately; for imports, which need no cleanup.

    Imports run weak-reference callbacks, and Python prints and drops a KeyboardInterrupt raised in one of these.
    """
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # keep any other handler, and SIG_IGN
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_process(code: int) -> NoReturn:
    """End the process with `code` without waiting for threads.

    A compute thread may still run a matmul. A normal interpreter shutdown around it aborts in the C++ runtime, so with
    other threads alive the process exits directly; everything durable has been written by then.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # closed pipe or full disk: drop the output, also at the interpreter's own flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or 1
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)
