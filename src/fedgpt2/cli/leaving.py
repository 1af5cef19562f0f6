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
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has left: nothing more to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)
