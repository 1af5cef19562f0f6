"""A stream to a watcher who may leave: what is said there is said as long as it can be."""

import contextlib
from collections.abc import Iterator
from typing import TextIO

__all__ = ["SafeStream"]


class SafeStream:
    """A text stream over another, whose writes never fail.

    A reader may close its pipe and a log's disk be full; neither may cost a run its rounds. What cannot be written is
    dropped, and the first time that is told to `complaints`, if these can still be told anything.
    """

    def __init__(self, stream: TextIO, complaints: TextIO) -> None:
        self._stream = stream
        self._complaints = complaints
        self._told = False

    @property
    def encoding(self) -> str:
        """As the stream's."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """As the stream's."""
        return self._stream.isatty()

    def say(self, line: str) -> None:
        """Write a line, now."""
        with self._unfailing():  # one `write`: lines of two threads do not mix
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        with self._unfailing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Send on what was written, or drop it."""
        with self._unfailing():
            self._stream.flush()

    @contextlib.contextmanager
    def _unfailing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._told:
                self._told = True
                self._tell(error)

    def _tell(self, error: OSError) -> None:
        with contextlib.suppress(OSError):  # it may have gone with the other
            reason = error.strerror or error
            print(f"output lost ({reason}); what is done goes on without it", file=self._complaints, flush=True)
