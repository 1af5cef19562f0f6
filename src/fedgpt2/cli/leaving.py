"""How a process ends."""

import os
import sys
import threading
from typing import NoReturn

__all__ = ["leave"]


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
