"""What is said to a watcher who may leave."""

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from fedgpt2.observe.factory import observer_for
from fedgpt2.observe.safe_stream import SafeStream

FULL = Path("/dev/full")  # takes nothing: every write to it is ENOSPC


def unread() -> TextIO:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.fixture
def gone() -> Iterator[TextIO]:
    stream = unread()
    yield stream
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_lines_arrive_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        SafeStream(log, io.StringIO()).say("a line")
        assert (tmp_path / "log").read_text() == "a line\n"


def test_a_reader_that_has_left_is_told_of_once(gone: TextIO) -> None:
    complaints = io.StringIO()
    outlet = SafeStream(gone, complaints)
    for _ in range(3):
        outlet.say("a line")
        assert outlet.write("a word") == 6
        outlet.flush()
    assert complaints.getvalue() == "output lost (Broken pipe); what is done goes on without it\n"


def test_complaints_that_nobody_reads_are_not_made(gone: TextIO) -> None:
    SafeStream(gone, gone).say("a line")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_of() -> None:
    complaints = io.StringIO()
    full = FULL.open("w")
    SafeStream(full, complaints).say("a line")
    assert "No space left on device" in complaints.getvalue()
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_neither_view_fails_with_its_stream(gone: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)  # the console draws in a thread
    with observer_for(gone, plain=True) as observer:
        observer.notice("hello")
    monkeypatch.setattr(gone, "isatty", lambda: True, raising=False)
    with observer_for(gone, plain=False) as observer:
        observer.notice("hello")
        time.sleep(0.6)  # it draws four times a second
    assert not failures
