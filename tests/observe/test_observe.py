"""What watchers are shown."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedgpt2.observe.board import Board
from fedgpt2.observe.chart import HELD_OUT, TRAIN, UNIGRAM, loss_chart
from fedgpt2.observe.console import Live, miners_table
from fedgpt2.observe.factory import observer_for
from fedgpt2.observe.formatting import count, duration, loss, short_key, volume
from fedgpt2.observe.observer import RunEnd, RunStart
from fedgpt2.observe.plain import Lines, round_line
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord
from tests.records import miner_record, round_record

START = RunStart(
    run_dir="runs/x",
    model="nano",
    parameters=7_254_016,
    source="sample",
    axons=("127.0.0.1:8091", "[::1]:8092"),
    rounds=20,
    aggregation="mean",
    unigram_loss=6.7,
)
END = RunEnd(run_dir="runs/x", rounds=3, peak_mb=700.0)
HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"


def miner(axon: str, status: str = "admitted", reason: str | None = None, **changes: object) -> MinerRecord:
    hotkey = HOTKEY if axon == "127.0.0.1:8091" else f"{HOTKEY[:20]}{axon}{HOTKEY[20:]}"
    values = {"axon": axon, "status": status, "reason": reason, "bytes_down": 1_000_000, "bytes_up": 500_000}
    return miner_record(hotkey, norm=1.0, weight=0.5, **(values | changes))


BOTH = (miner("127.0.0.1:8091"), miner("[::1]:8092", "refused", "wrong_shape"))


def row(
    number: int,
    val_loss: float | None = None,
    applied: bool = True,
    miners: tuple[MinerRecord, ...] = BOTH,
    **changes: object,
) -> RoundRecord:
    reason = None if applied else "too_few"
    values = {"applied": applied, "reason": reason, "train_loss": 11.0 - number / 4, "val_loss": val_loss}
    return round_record(number, miners, **(values | changes))


def test_the_board_adds_up() -> None:
    board = Board()
    board.begin(START)
    for number in (1, 2, 3):
        initial = 10.8 if number == 1 else None
        board.add(row(number, 9.0 if number == 2 else None, applied=number != 3, initial_val_loss=initial))
    assert board.initial == 10.8
    assert board.train == [(1, 10.75), (2, 10.5), (3, 10.25)]
    assert board.held_out == [(2, 9.0)]
    assert (board.tokens, board.seconds, board.bytes_down, board.kept) == (3072, 4.5, 6_000_000, 1)
    honest, hostile = board.miners.values()
    assert (honest.statuses["admitted"], honest.tokens, honest.bytes_up) == (3, 3072, 1_500_000)
    assert (hostile.statuses["refused"], dict(hostile.reasons)) == (3, {"wrong_shape": 3})


def test_a_round_is_one_line() -> None:
    assert round_line(row(3, 9.0), 20) == (
        "round 3/20  train 10.250 held-out 9.000  lr 1.00e-03  1/2 admitted  1,024 tokens  1.50 s  "
        "down 2.0 MB up 1.0 MB  [::1]:8092 refused: wrong_shape (MINER)"
    )
    assert "weights kept: too_few" in round_line(row(3, applied=False))


def test_many_refusals_are_counted() -> None:
    refused = [miner(f"miner-{i}", "refused", "non_finite") for i in range(9)]
    late = miner("miner-9", "failed", "late")
    line = round_line(row(3, miners=(*refused, late)))
    assert line.endswith("9 refused: non_finite (MINER)  1 failed: late (MINER)")


def test_plain_lines_tell_the_whole_run() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.started(START)
    lines.waiting("looking for miners")
    lines.round_done(row(1))
    lines.notice("a miner left")
    lines.finished(END)
    assert said[0] == "run runs/x: nano (7.3M parameters), text sample, mean over 2 miners"
    assert said[1] == "a unigram model of the same text has a held-out loss of 6.700"
    assert said[2] == "looking for miners"
    assert said[3].startswith("round 1/20  ")
    assert said[4:] == ["a miner left", "3 rounds in runs/x, peak memory 700.0 MB, 1.50 s a round: send 0.10"]
    lines.started(msgspec.structs.replace(START, resumed_after=7, unigram_loss=None))
    assert said[-1].endswith("going on after round 7")


def test_the_console_shows_the_run() -> None:
    terminal = io.StringIO()
    with Live(Console(file=terminal, force_terminal=True, width=140, height=50)) as live:
        live.started(START)
        live.waiting("looking for miners")
        for number in (1, 2, 3):
            live.round_done(row(number, 9.0))
        live.notice("[bold]a miner left")
        live.finished(END)
        console = Console(file=io.StringIO(), width=140, record=True)
        console.print(live.render())
    text = console.export_text()
    for part in (
        "nano, 7.3M parameters",
        "round 3 of 20",
        "held-out 9.000",
        "unigram 6.700",
        "[::1]:8092",
        "5Grwva…utQY",
        "wrong_shape 3x",
        "[bold]a miner left",
        "3 rounds in runs/x",
        HELD_OUT,
    ):
        assert part in text
    assert "round 3 of 20" in terminal.getvalue()


@pytest.mark.parametrize(
    ("width", "shown", "gone"),
    [
        (140, ["down", "seconds", "tokens", "5Grwva…utQY", "wrong_shape 3x"], []),
        (80, ["127.0.0.1:8091", "admitted", "25.0±8.3", "refused", "failed", "wrong_shape"], ["down", "5Grwva…utQY"]),
        (50, ["127.0.0.1:8091", "admitted", "25.0±8.3"], ["failed", "wrong_shape", "tokens"]),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns_of_miners_and_these_whole(
    width: int, shown: list[str], gone: list[str]
) -> None:
    board = Board()
    for number in (1, 2, 3):
        rated = tuple(msgspec.structs.replace(each, rating=25.0, sigma=8.3) for each in row(number).miners)
        board.add(row(number, miners=rated))
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(miners_table(board, console.width))
    text = console.export_text()
    assert all(part in text for part in shown)
    assert not any(part in text for part in gone)


def test_the_console_can_be_drawn_while_it_is_told() -> None:
    live = Live(Console(file=io.StringIO(), force_terminal=True))
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            live.render()

    thread = threading.Thread(target=draw)
    thread.start()
    for number in range(100):
        live.round_done(row(number, miners=(miner(f"h:{number}"),)))
    done.set()
    thread.join()
    assert len(live.board.miners) == 100


def test_a_kept_round_shows_its_reason() -> None:
    live = Live(Console(file=io.StringIO(), width=140))
    live.round_done(row(1, applied=False))
    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(live.render())
    assert "weights kept: too_few" in console.export_text()


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@contextmanager
def chosen(stream: io.StringIO, plain: bool) -> Iterator[type]:
    with observer_for(stream, plain=plain) as observer:
        observer.notice("hello")
        yield type(observer)


def test_a_terminal_gets_the_console_and_a_pipe_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with chosen(_Terminal(), plain=False) as kind:
        assert kind is Live
    for stream, plain in ((_Terminal(), True), (io.StringIO(), False)):
        with chosen(stream, plain) as kind:
            assert kind is Lines
        assert stream.getvalue() == "hello\n"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", "unknown"), ("TTY_COMPATIBLE", "0")])
def test_a_terminal_that_cannot_redraw_gets_lines(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    terminal = _Terminal()
    with observer_for(terminal, plain=False) as observer:
        observer.notice("hello")
        assert terminal.getvalue() == "hello\n"


def test_the_chart_puts_losses_where_they_belong() -> None:
    lines = loss_chart([(0, 10.0), (10, 5.0)], [(5, 7.5)], 6.0, width=17, height=11)
    assert lines[0] == f"10.00 {TRAIN}"
    assert lines[5] == f"           {HELD_OUT}"
    assert lines[8] == f" 6.00 {UNIGRAM * 11}"
    assert lines[10] == f" 5.00 {' ' * 10}{TRAIN}"


def test_the_chart_of_a_long_run_looks_at_a_part_of_it() -> None:
    class Counted(list):
        def __iter__(self):
            raise AssertionError("it looks at all of them")

    series = Counted((number, 10.0 - number / 1000) for number in range(5000))
    lines = loss_chart(series, [], None, width=46, height=6)
    assert (lines[0][:7], lines[5][:5]) == (f"10.00 {TRAIN}", " 5.00")
    assert lines[5].endswith(TRAIN)
    assert {number for number in range(6, 46) if any(line[number : number + 1] == TRAIN for line in lines)} == set(
        range(6, 46)
    )


@pytest.mark.parametrize(("loss", "label"), [(99.994, "99.99"), (100.0, "100.0"), (2345.6, " 2346"), (1.2e6, "1e+06")])
def test_a_diverged_loss_finds_room_in_the_margin(loss: float, label: str) -> None:
    assert loss_chart([(0, 0.0), (1, loss)], [], None, width=20, height=4)[0].startswith(f"{label} ")


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e9))),
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e9))),
    st.none() | st.floats(0, 20),
    st.integers(0, 120),
    st.integers(0, 20),
)
def test_the_chart_never_leaves_its_frame(
    train: list[tuple[int, float]], held_out: list[tuple[int, float]], unigram: float | None, width: int, height: int
) -> None:
    lines = loss_chart(train, held_out, unigram, width=width, height=height)
    assert len(lines) in (0, height)
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (volume(12), "12 B"),
        (volume(55_200_000), "55.2 MB"),
        (volume(3.2e15), "3200.0 TB"),
        (count(999), "999"),
        (count(124_439_808), "124.4M"),
        (duration(64), "1:04"),
        (duration(7264), "2:01:04"),
        (loss(None), "-"),
        (loss(6.6789), "6.679"),
        (short_key("short"), "short"),
    ],
)
def test_numbers_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected
