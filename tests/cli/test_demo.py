"""The demo, whole, and how it ends."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgpt2.cli import main as entry
from fedgpt2.cli.demo import _interruptible as interruptible
from fedgpt2.cli.demo_miners import ADMISSIBLE, CYCLE, DemoMiners, choose_miners
from fedgpt2.cli.demo_report import EXPECTED_REFUSALS, evaluate
from fedgpt2.observe.board import Board
from fedgpt2.protocol.round_record import RoundRecord
from tests.cli.conftest import Shown, demo, running
from tests.records import miner_record, round_record

pytestmark = pytest.mark.timeout(240)


def test_the_demo_shows_what_it_promises(shown: Shown) -> None:
    assert shown.err == ""
    # six rounds are too few to learn; nothing else is missed
    missed = [line for line in shown.out.splitlines() if line.startswith("missed: ")]
    assert len(missed) == 1
    assert "is not below 6.9" in missed[0]
    assert shown.code == 1
    assert "a unigram model of the same text: 6." in shown.out
    assert "sample:\n    The people of the United States" in shown.out
    refusals = "wrong_shape 1x, non_finite 1x, wrong_parent 1x, norm_bound 1x"
    assert (
        f"refused in 4 of 6 rounds: {refusals}\n    admitted in 2 (sign_flip and scale_bound) with weight " in shown.out
    )
    assert f"run directory: {shown.folder}" in " ".join(shown.out.split())


def test_its_rounds_are_those_of_four_honest_miners(shown: Shown) -> None:
    rows = [json.loads(line) for line in (shown.folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    hostile = {miner["axon"] for row in rows for miner in row["miners"] if miner["status"] != "admitted"}
    assert len(hostile) == 1
    for row in rows:
        for miner in row["miners"]:
            attack = CYCLE[row["round"] - 1] if miner["axon"] in hostile else None
            assert miner["status"] == ("admitted" if attack is None or attack in ADMISSIBLE else "refused")
            if attack in ADMISSIBLE:
                assert miner["weight"] < 0.01
        assert row["applied"]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_it_leaves_nothing_running_and_everything_in_its_folder(shown: Shown) -> None:
    assert running(shown.folder) == []
    assert {path.name for path in shown.folder.iterdir()} >= {"wallets", "logs", "rounds.jsonl", "ledger.sqlite"}
    for log in (shown.folder / "logs").glob("*.err"):
        assert "Traceback" not in log.read_text()
    for log in (shown.folder / "logs").glob("*.log"):
        assert "mnemonic" not in log.read_text().lower()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("mine")
    assert entry.main(["demo", "--run.dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_demo_ends_its_children(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with demo(folder) as child:
        assert within(20, lambda: len(running(folder)) == 7)
        asked = time.monotonic()
        child.send_signal(number)
        _, err = child.communicate(timeout=20)
        assert within(5, lambda: running(folder) == [])
        assert time.monotonic() - asked < 10  # 5 on a machine that has nothing else to do
    if number != signal.SIGKILL:
        assert child.returncode == 130
        assert err == f"interrupted; committed rounds are in {folder}\n"


def within(seconds: float, true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.05)
    return true()


def test_under_nohup_it_outlives_the_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_hostile_miners_place_is_drawn_by_seed() -> None:
    places = {
        miners.ports.index(miners.hostile or 0)
        for miners in (choose_miners(4, seed, hostile=True) for seed in range(40))
    }
    assert places == {0, 1, 2, 3, 4}
    alone = choose_miners(4, 0, hostile=False)
    assert (len(alone.ports), alone.hostile, alone.hostile_axon) == (4, None, None)


def rows(reasons: list[str | None], losses: list[float], weight: float) -> list[RoundRecord]:
    """Rounds of the hostile miner and, with a weight of 0.25, an honest one."""
    honest = miner_record("g", axon="127.0.0.1:1", weight=0.25)
    hostile = [miner_record("h", axon="127.0.0.1:2", reason=why, weight=0.0 if why else weight) for why in reasons]
    return [
        round_record(number, [honest, miner], val_loss=loss)
        for number, (miner, loss) in enumerate(zip(hostile, losses, strict=True), 1)
    ]


ALL: list[str | None] = [reason.value for reason in EXPECTED_REFUSALS]
MINERS = DemoMiners((1, 2), 2)
SHAPE = "the hostile miner was never refused for wrong_shape"
ONCE = "the hostile miner was admitted 2 times, with 1 answers that admission cannot refuse"


@pytest.mark.parametrize(
    ("reasons", "losses", "weight", "miners", "missed"),
    [
        (ALL, [9.0, 8.0, 7.0, 6.5], 0.0, MINERS, []),
        (ALL, [9.0, 8.0, 7.0, 6.9], 0.0, MINERS, ["the held-out loss 6.900 is not below 6.9"]),
        (
            ALL[:2],
            [9.0, 6.5],
            0.0,
            MINERS,
            [f"the hostile miner was never refused for {reason}" for reason in ("wrong_parent", "norm_bound")],
        ),
        ([*ALL[:3], None, ALL[3], None], [9.0, 8.0, 8.0, 7.0, 7.0, 6.5], 0.25, MINERS, []),
        (
            [*ALL[:3], None, ALL[3], None],
            [9.0, 8.0, 8.0, 7.0, 7.0, 6.5],
            0.26,
            MINERS,
            ["the hostile miner weighed 0.260 in rounds that admitted it, an honest one 0.250"],
        ),
        (
            [*ALL[1:], None, None],
            [9.0, 8.0, 7.0, 7.0, 6.5],
            0.0,
            MINERS,
            [ONCE, SHAPE],
        ),
        (
            [],
            [],
            0.0,
            MINERS,
            ["no held-out loss was measured; raise --seconds", "the hostile miner never took part"],
        ),
        ([None], [6.5], 0.0, DemoMiners((1,), None), []),
    ],
)
def test_the_verdict_says_what_was_missed(
    reasons: list[str | None], losses: list[float], weight: float, miners: DemoMiners, missed: list[str]
) -> None:
    board = Board()
    for row in rows(reasons, losses, weight):
        board.add(row)
    assert list(evaluate(board, miners).missed) == missed
