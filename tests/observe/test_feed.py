"""A run told across a file."""

from pathlib import Path

import pytest

from fedgpt2.observe.feed import Feed, follow, replay_line
from fedgpt2.observe.observer import RunEnd, RunStart
from fedgpt2.observe.plain import Lines
from tests.records import miner_record, round_record


def tell(observer: Feed | Lines) -> None:
    observer.started(RunStart(run_dir="x", model="tiny", parameters=5, axons=("a",), unigram_loss=6.5))
    observer.waiting("for miners")
    observer.round_done(round_record(1, [miner_record("a"), miner_record("b", reason="late")]))
    observer.notice("something\nodd")
    observer.finished(RunEnd(run_dir="x", rounds=1))


def test_what_is_retold_is_what_was_told() -> None:
    lines: list[str] = []
    direct: list[str] = []
    retold: list[str] = []
    tell(Feed(lines.append))
    tell(Lines(direct.append))
    listener = Lines(retold.append)
    for line in lines:
        assert "\n" not in line
        replay_line(line.encode(), listener)
    assert retold == direct


@pytest.mark.parametrize("line", [b"", b"nonsense", b'["unknown",1]', b'["started",1]', b"{}"])
def test_a_line_that_is_none_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"feed|JSON|Expecting"):
        replay_line(line, Lines([].append))


def test_a_growing_file_is_read_in_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "log"
    lines = follow(file)
    assert next(lines) == []
    file.write_bytes(b"one\ntw")
    assert next(lines) == [b"one"]
    assert next(lines) == []
    with file.open("ab") as more:
        more.write(b"o\nthree\n")
    assert next(lines) == [b"two", b"three"]
