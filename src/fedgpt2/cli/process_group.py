"""Child processes that end with their parent, however it ends."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import fedgpt2

__all__ = ["ProcessGroup"]

_GRACE_SECONDS = 4.0  # between the interrupt and the kill
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProcessGroup:
    """Named child processes of a program; leaving the context ends them all."""

    def __init__(self, logs: Path) -> None:
        """The output of a child goes to `logs`/NAME.log, its errors to NAME.err."""
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._prepare_child = _child_setup()
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, module: str, flags: Sequence[str]) -> None:
        """Start `python -m module flags`."""
        with self.log(name).open("wb") as output, self.errors(name).open("wb") as errors, _signals_blocked():
            self._children[name] = subprocess.Popen(  # noqa: S603  (our own interpreter, our own module)
                [sys.executable, "-m", module, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=_environment(),
                process_group=0,  # a terminal's Ctrl-C reaches only the parent, which ends the children in order
                preexec_fn=self._prepare_child,
            )

    def log(self, name: str) -> Path:
        """File with the output of a child."""
        return self._logs / f"{name}.log"

    def errors(self, name: str) -> Path:
        """File with the errors of a child."""
        return self._logs / f"{name}.err"

    def last_error(self, name: str) -> str:
        """Last line of a child's errors; empty for none."""
        lines = self.errors(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def pid(self, name: str) -> int:
        """Process id of a child."""
        return self._children[name].pid

    def exit_code(self, name: str) -> int | None:
        """Exit code of a child; None while it runs."""
        return self._children[name].poll()

    def wait(self, name: str, seconds: float) -> int | None:
        """Wait up to `seconds` for a child to end; return its exit code, None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._children[name].wait(seconds)
        return None

    def interrupt(self, name: str) -> None:
        """Send SIGINT to a child that runs."""
        if self.exit_code(name) is None:
            self._children[name].send_signal(signal.SIGINT)

    def stop(self) -> None:
        """End all children: interrupt them, and kill those that run on after a grace period or a second Ctrl-C."""
        until = time.monotonic() + _GRACE_SECONDS
        try:
            for name in self._children:
                self.interrupt(name)
            for name in self._children:
                self.wait(name, max(0.0, until - time.monotonic()))
        finally:
            for child in self._children.values():
                if child.poll() is None:
                    child.kill()
                child.wait()


def _environment() -> Mapping[str, str]:
    """This process's environment without FEDGPT2_ settings, with this package and one OpenMP thread per child."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDGPT2_")}
    source = str(Path(fedgpt2.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Delay end signals while a child is started; one in between would leave an unregistered child running."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _child_setup() -> Callable[[], None]:
    """Code that a new child runs first: unblock signals and, on Linux, request SIGKILL when the parent dies."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return prepare
