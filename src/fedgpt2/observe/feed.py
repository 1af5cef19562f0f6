"""A run told to another process: an observer that writes a JSON line for each thing it is told, and its reader."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fedgpt2.observe.observer import Observer

__all__ = ["Feed", "follow", "retell"]


class Feed:
    """An `Observer` that writes lines `["event", what]`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def started(self, facts: Mapping[str, object]) -> None:
        """Write it."""
        self._tell("started", facts)

    def waiting(self, message: str) -> None:
        """Write it."""
        self._tell("waiting", message)

    def round_done(self, row: Mapping[str, object]) -> None:
        """Write it."""
        self._tell("round_done", row)

    def notice(self, line: str) -> None:
        """Write it."""
        self._tell("notice", line)

    def finished(self, facts: Mapping[str, object]) -> None:
        """Write it."""
        self._tell("finished", facts)

    def _tell(self, event: str, what: object) -> None:
        self._write(json.dumps([event, what], separators=(",", ":")))


def retell(line: bytes, observer: Observer) -> None:
    """Tell `observer` what a line of a feed says. Raises ValueError for a line that is none."""
    match json.loads(line):
        case ["started", dict(facts)]:
            observer.started(facts)
        case ["waiting", str(message)]:
            observer.waiting(message)
        case ["round_done", dict(row)]:
            observer.round_done(row)
        case ["notice", str(text)]:
            observer.notice(text)
        case ["finished", dict(facts)]:
            observer.finished(facts)
        case _:
            raise ValueError(f"not a line of a feed: {line[:80]!r}")


def follow(path: Path) -> Iterator[list[bytes]]:
    """The whole lines that a growing file has gained, each time it is asked; it need not exist yet."""
    offset = 0
    while True:
        new = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        offset += len(whole)
        yield whole.splitlines()
