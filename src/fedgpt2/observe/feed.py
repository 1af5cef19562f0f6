"""A run's events as JSON lines for another process: an observer that writes them, and their reader."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from fedgpt2.observe.observer import Observer, RunEnd, RunStart
from fedgpt2.protocol.round_record import RoundRecord

__all__ = ["Feed", "follow", "replay_line"]

_KINDS = {"started": RunStart, "waiting": str, "round_done": RoundRecord, "notice": str, "finished": RunEnd}


class Feed:
    """An `Observer` that writes lines `["event", value]`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def started(self, start: RunStart) -> None:
        """Write it."""
        self._event("started", start)

    def waiting(self, message: str) -> None:
        """Write it."""
        self._event("waiting", message)

    def round_done(self, record: RoundRecord) -> None:
        """Write it."""
        self._event("round_done", record)

    def notice(self, line: str) -> None:
        """Write it."""
        self._event("notice", line)

    def finished(self, end: RunEnd) -> None:
        """Write it."""
        self._event("finished", end)

    def _event(self, name: str, value: object) -> None:
        self._write(msgspec.json.encode([name, value]).decode())


def replay_line(line: bytes, observer: Observer) -> None:
    """Pass the event in a line of a feed to `observer`. Raises ValueError for a line that is none."""
    try:
        name, raw = msgspec.json.decode(line, type=tuple[str, msgspec.Raw])
        value: Any = msgspec.json.decode(raw, type=_KINDS[name])
    except (msgspec.DecodeError, KeyError) as error:
        raise ValueError(f"not a line of a feed: {line[:80]!r}") from error
    getattr(observer, name)(value)


def follow(path: Path) -> Iterator[list[bytes]]:
    """Each time it is asked: the whole lines that a growing file has gained. The file need not exist yet."""
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
