"""What a forked child does: take over its folder, output and environment, then be the program it was asked to be.

Run by `runpy` in a process whose parent has imported everything heavy; `ORDERS` is put in by `Federation`.
"""

import ctypes
import importlib
import os
import signal
import sys
from typing import Any

ORDERS: dict[str, Any] = globals()["ORDERS"]

_PARENT_DIES = 1  # linux/prctl.h: PR_SET_PDEATHSIG


def _become() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PARENT_DIES, signal.SIGKILL)  # nothing outlives a test run that is killed
    os.closerange(3, 1024)  # among them what keeps the parent alive for as long as anybody holds it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, path in enumerate((os.devnull, ORDERS["stdout"], ORDERS["stderr"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.clear()
    os.environ.update(ORDERS["environment"])
    os.chdir(ORDERS["folder"])
    sys.path[:0] = ORDERS["path"]


def _run() -> int:
    module, _, function = ORDERS["program"].partition(":")
    try:
        code: int = getattr(importlib.import_module(module), function)(ORDERS["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


_become()
sys.exit(_run())
