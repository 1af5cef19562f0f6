"""A command that runs as a process of its own: what it prints, how it is stopped, how it ended.

`Forked` children come from a server process that has imported torch once (a start then takes a tenth of a second);
`Spawned` ones are started as people do, `python src/miner.py …`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from runpy import run_path

import pytest

__all__ = ["HERE", "MAIN", "Forked", "Program", "Spawned", "start_server", "wait_until"]

HERE = Path(__file__).parent
SRC = HERE.parents[1] / "src"
MAIN = "fedgpt2.cli.main:main"

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "bittensor.http_auth",
        "bittensor.sp_core",
        "bittensor.wallet",
        "fedgpt2.cli.parsing",
        "fedgpt2.gradient.exact",
        "fedgpt2.gradient.plugin",
        "fedgpt2.miner.program",
        "fedgpt2.event_loop",
        "fedgpt2.observe.factory",
        "fedgpt2.validator.program",
        "uvloop",
    ]
)


def start_server():
    """Start the process that later ones are forked from; it finds the package by the environment alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SRC))
        ensure_running()


def wait_until(condition, what, programs=(), seconds=30.0):
    """The value of `condition()` once it is true; fails the test after `seconds`, or when one of `programs` ends."""
    end = time.monotonic() + seconds
    while True:
        ended = [program for program in programs if program.exit_code(0) is not None]
        if value := condition():
            return value
        said = "\n".join(program.told() for program in ended or programs)
        assert not ended, f"ended without {what}: {said}"
        assert time.monotonic() < end, f"no {what} within {seconds:g} s: {said}"
        time.sleep(0.02)


class Program:
    """One command in its folder; stdout and stderr go to files there."""

    def __init__(self, name, argv, folder, environment, program):
        self.name, self.argv = name, [str(word) for word in argv]
        folder.mkdir(parents=True, exist_ok=True)
        count = len(list(folder.glob(f"{name}-*.out")))
        self._out, self._err = (folder / f"{name}-{count}.{kind}" for kind in ("out", "err"))
        self._out.touch()
        self._err.touch()
        self.pid = self._start(folder, {"HOME": str(folder), "PATH": os.environ["PATH"], **environment}, program)

    @property
    def out(self):
        """What it has printed so far."""
        return self._out.read_text()

    @property
    def err(self):
        """What it has complained so far."""
        return self._err.read_text()

    def lines(self, text):
        """The printed lines that hold `text`."""
        return [line for line in self.out.splitlines() if text in line]

    def wait_for(self, text, seconds=60.0, times=1):
        """The `times`-th line that holds `text`, once it is there; fails at once if the process ends without it."""

        line = wait_until(lambda: self.lines(text)[times - 1 : times], repr(text), [self], seconds)
        return line[0]

    def told(self):
        """All it said, for the reader of a failed test."""
        return f"{self.name} (exit code {self.exit_code(0)})\n{self.out}{self.err}"

    def signal(self, number):
        """Send it a signal, if it is still there."""
        if self.exit_code(0) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        return self.exit_code(10)

    def interrupt(self, seconds=5.0):
        """SIGINT, on which it must end with 0 within `seconds`."""
        self.signal(signal.SIGINT)
        self.ended(0, seconds)

    def ended(self, code=0, seconds=100.0):
        """Fail the test unless it ends with exit code `code` within `seconds`; on 0 it may not have complained."""
        found = self.exit_code(seconds)
        assert found == code, f"exit code {code} expected within {seconds:g} s: {self.told()}"
        assert code != 0 or self.err == "", self.err

    def complaint(self, code=1, seconds=100.0):
        """The one line on stderr with which it ended."""
        self.ended(code, seconds)
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err.rstrip("\n")


class Forked(Program):
    """A child of the server process."""

    def _start(self, folder, environment, program):
        orders = {
            "argv": self.argv,
            "environment": environment,
            "folder": str(folder),
            "path": [str(HERE), str(SRC)],
            "program": program,
            "stdout": str(self._out),
            "stderr": str(self._err),
        }
        self._process = _FORKS.Process(target=run_path, args=(str(HERE / "start.py"), {"ORDERS": orders}), daemon=True)
        self._process.start()
        return self._process.pid

    def exit_code(self, seconds):
        """Its exit code, negative for a signal; None if it still runs after `seconds`."""
        self._process.join(seconds)
        return self._process.exitcode


class Spawned(Program):
    """A process of its own from the start; `argv` begins with the command, miner or validator."""

    def command(self):
        """The command line."""
        command, *rest = self.argv
        return [sys.executable, SRC / f"{command}.py", *rest]

    def _start(self, folder, environment, program):
        assert program == MAIN, "only the forked kind runs other programs"
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment,
            )
        return self._process.pid

    def exit_code(self, seconds):
        """Its exit code, negative for a signal; None if it still runs after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None
