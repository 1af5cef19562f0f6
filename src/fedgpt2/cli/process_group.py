"""Child processes that end when their parent does, whatever ends it."""

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

__all__ = ["Crew"]

_PATIENCE = 4.0  # seconds a child has to put things in order
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Crew:
    """The children of a program, by name; a context that leaves none running."""

    def __init__(self, logs: Path) -> None:
        """Each child's output goes to `logs`/NAME.log and, its errors apart, NAME.err."""
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._bind = _binding()
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, module: str, flags: Sequence[str]) -> None:
        """Start `python -m module flags`."""
        with self.log(name).open("wb") as output, self.errors(name).open("wb") as errors, _uninterrupted():
            self._children[name] = subprocess.Popen(  # noqa: S603  (our own interpreter, our own module)
                [sys.executable, "-m", module, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=_environment(),
                process_group=0,  # a terminal's Ctrl-C comes to the parent, who passes it on in order
                preexec_fn=self._bind,
            )

    def log(self, name: str) -> Path:
        """Where a child's output goes."""
        return self._logs / f"{name}.log"

    def errors(self, name: str) -> Path:
        """Where a child's errors go."""
        return self._logs / f"{name}.err"

    def last_words(self, name: str) -> str:
        """The last line a child wrote to its errors; empty for none."""
        lines = self.errors(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def pid(self, name: str) -> int:
        """A child's process."""
        return self._children[name].pid

    def ended(self, name: str) -> int | None:
        """Exit code of a child that has ended, else None."""
        return self._children[name].poll()

    def wait(self, name: str, seconds: float) -> int | None:
        """Its exit code, once it has ended; None when it has not within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._children[name].wait(seconds)
        return None

    def interrupt(self, name: str) -> None:
        """Ask a child to end, as Ctrl-C does."""
        if self.ended(name) is None:
            self._children[name].send_signal(signal.SIGINT)

    def stop(self) -> None:
        """End all children: asked first, killed when they take too long or we are interrupted again."""
        until = time.monotonic() + _PATIENCE
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
    """Ours, less its settings; the same package; one thread a process, for there are many of them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDGPT2_")}
    source = str(Path(fedgpt2.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put signals off while a child is made: one that came in between would leave a child nobody knows."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _binding() -> Callable[[], None]:
    """What a new child runs first: it hears signals, and dies when we do, even by SIGKILL, where the kernel can."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    parent = os.getpid()

    def bind() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return bind
