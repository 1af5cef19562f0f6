"""A bench candidate in its own process, so that memory and allocator settings are its own.

The worker serves one candidate: commands come as JSON lines on stdin, answers go as JSON lines to the
stdout it was started with; whatever libraries print goes to stderr.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from fedgpt2.errors import FedGPT2Error

__all__ = ["Worker", "peak_mb", "release", "serve"]

Command = Callable[..., Mapping[str, Any] | None]


class Worker:
    """The caller's end of a worker process."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.name = name
        self._process = process
        self._log = log

    def __call__(self, command: str, **arguments: object) -> dict[str, Any]:
        """Run one command to its end. Raises FedGPT2Error with the worker's last word if it died."""
        if self._process.poll() is not None:
            raise self._death()
        print(json.dumps([command, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline() if self._process.stdout else ""
        if not answer:
            raise self._death()
        result: dict[str, Any] = json.loads(answer)
        return result

    def _death(self) -> FedGPT2Error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)  # its last word comes after its answers end
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or ["no word"])[-1]
        return FedGPT2Error(f"bench candidate {self.name} ended: {last}")

    @classmethod
    @contextlib.contextmanager
    def start(cls, name: str, module: str, *arguments: str, unset: Collection[str] = ()) -> Iterator["Worker"]:
        """`python -m module arguments...` as worker `name`, without the variables `unset`; it ends with the block."""
        package_root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-u", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={k: v for k, v in os.environ.items() if k not in unset} | {"PYTHONPATH": path},
            )
            with process:
                try:
                    yield cls(name, process, log)
                finally:
                    process.kill()


def serve(commands: Mapping[str, Command]) -> None:
    """The worker's end: answer commands until stdin closes."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            command, arguments = json.loads(line)
            print(json.dumps(commands[command](**arguments) or {}), file=answers, flush=True)


def release() -> None:
    """Hand memory that malloc keeps back to the kernel, where glibc can."""
    gc.collect()
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


def peak_mb() -> float:
    """The most memory this process has had resident, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 * 1.024
