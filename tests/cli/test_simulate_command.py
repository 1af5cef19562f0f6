"""`fedgpt2 simulate` as people call it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedgpt2.cli import main as entry
from fedgpt2.cli.flags import flags_of
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.simulate import Simulate
from fedgpt2.cli.simulate_report import show
from fedgpt2.config import SimulationConfig
from fedgpt2.observe.board import Board, Recorder
from fedgpt2.observe.observer import RunStart
from fedgpt2.protocol.round_record import PhaseSeconds
from fedgpt2.simulate.participants import Participants
from fedgpt2.simulate.result import Result, Scribe
from fedgpt2.types import Hotkey
from tests.records import miner_record, round_record

SRC = Path(__file__).parents[2] / "src"
SMALL = ("--model.preset", "tiny", "--data.windows", "1", "--data.seq_len", "32", "--run.threads", "1")


def start(*flags: str, cwd: Path) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDGPT2_")}
    return subprocess.Popen(
        [sys.executable, "-m", "fedgpt2", "simulate", *SMALL, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(SRC)},
    )


def test_json_is_all_of_stdout_and_progress_goes_to_stderr(tmp_path: Path) -> None:
    with start(
        "--miners", "4", "--byzantine", "1", "--attack", "nan", "--rounds", "2", "--json", cwd=tmp_path
    ) as child:
        out, err = child.communicate(timeout=100)
    assert child.returncode == 0, err
    document = json.loads(out)
    assert [row["round"] for row in document["rounds"]] == [1, 2]
    assert document["settings"]["attack"] == "nan"
    assert sum(miner["hostile"] for miner in document["miners"]) == 1
    assert document["final_val_loss"] == document["val_loss"][-1]
    assert "round 2/2" in err
    assert "refused: non_finite (MINER)" in err
    assert list(tmp_path.iterdir()) == []


def test_interrupted_it_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)
    try:
        child = start("--rounds", "10000", "--run.eval_every", "1", "--json", cwd=tmp_path)
    finally:
        del os.environ["TMPDIR"]
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("round 1/"):
            break
    asked = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert time.monotonic() - asked < 20  # 5 s on a machine of its own
    assert child.returncode == 130
    assert "stopped after" in err
    assert "Traceback" not in err
    assert json.loads(out)["val_loss"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--attack sgin_flip --byzantine 2", "--attack sgin_flip: no such attack; one of none, absent, sign_flip, "),
        ("--miners 4 --byzantine 4", "--byzantine 4: fewer than --miners 4, or nobody is honest"),
        ("--attack nan", "--attack nan: --byzantine says how many of the miners it is; at least 1"),
        ("--miners 0", "--miners 0: at least 1"),
        ("--rounds 0", "--rounds 0: at least 1"),
        ("--byzantine -1", "--byzantine -1: at least 0"),
        ("--axons 8091", "unknown flag --axons"),
        ("--model.preset huge", "--model.preset huge: no such preset; one of tiny, nano"),
        ("--run.dir ~nosuch/x", "--run.dir ~nosuch/x: no such home directory"),
        ("--data.source parquet:x --data.cache ~nosuch/x", "--data.cache ~nosuch/x: no such home directory"),
        ("--data.source text:~nosuch/x", "--data.source ~nosuch/x: no such home directory"),
        ("--aggregation.rule vote", "--aggregation.rule vote: no such rule; one of mean, default"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["simulate", *words.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"fedgpt2 simulate: {line}")
    assert said.err.count("\n") == 1


def test_help_needs_nothing_heavy() -> None:
    code = "import sys; from fedgpt2.cli.main import main; main(['simulate', '--help-all']); print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(SRC)}, check=True
    )
    assert not {name.partition(".")[0] for name in answer.stdout.splitlines()[-1].split()} & {"torch", "bittensor"}
    assert all(flag.name in answer.stdout for flag in flags_of(Simulate))


def test_the_flags_are_a_simulations_settings_and_json() -> None:
    names = [flag.name for flag in flags_of(Simulate)]
    assert {"--miners", "--attack", "--byzantine", "--rounds", "--json", "--run.dir", "--aggregation.gate"} <= set(
        names
    )
    parsed = parse(Simulate, ["--json", "--miners", "9"], prog="fedgpt2 simulate", about="")
    assert parsed.json
    assert parsed.config() == SimulationConfig(miners=9)


def ended(miners: int, rounds: int, *, finished: bool = True) -> Result:
    """A result of `rounds` rounds in which every fourth miner was refused."""
    roster = Participants(
        tuple(Hotkey(f"5Key{i:04d}{'x' * 40}") for i in range(miners)), frozenset(range(0, miners, 4))
    )
    scribe = Scribe(Recorder(Board()), roster.hostile_keys, lambda: 0.5)
    scribe.started(RunStart(unigram_loss=6.5, rounds=rounds))
    for number in range(1, rounds + 1):
        records = [
            miner_record(
                hotkey,
                axon=f"miner-{i}",
                reason="non_finite" if i in roster.hostile else None,
                weight=0.0 if i in roster.hostile else 0.25,
            )
            for i, hotkey in enumerate(roster.hotkeys)
        ]
        applied = number > 1
        scribe.round_done(
            round_record(
                number,
                records,
                applied=applied,
                reason=None if applied else "loss_gate",
                train_loss=9.5,
                val_loss=9.0 - number / 8 if number % 2 == 0 else None,
                seconds=PhaseSeconds(total=1.0),
            )
        )
    return scribe.result(SimulationConfig(miners=miners, byzantine=1, attack="nan"), roster, finished=finished)


def shown(result: Result) -> str:
    out = io.StringIO()
    show(result, out)
    return out.getvalue()


def test_tables_tell_losses_and_what_became_of_whom() -> None:
    text = shown(ended(8, 4))
    assert text.startswith("held-out loss 8.500 after 4 rounds of 8 miners, 1 of them nan, default; a unigram model")
    assert re.search(r"4 +9\.500 +8\.500 +0\.0 % +0\.500 +1\.00 +stepped", text)
    assert re.search(r"honest +6 +24 +0 +0 +1\.500", text)
    assert re.search(r"hostile +2 +0 +8 +0 +0\.000 +non_finite 8x", text)
    assert text.count("5Key00") == 8


def test_who_has_no_rank_comes_after_all_who_have_one() -> None:
    result = ended(4, 2)
    ranked = [replace(miner, rank=i, rating=30.0 - i) if i else miner for i, miner in enumerate(result.miners)]
    table = shown(replace(result, miners=tuple(ranked))).splitlines()[-4:]
    assert [re.split(r"  +", line)[2] for line in table] == ["1", "2", "3", "-"]


def test_many_miners_and_rounds_are_summed_up() -> None:
    text = shown(ended(40, 60))
    assert "5Key00" not in text
    assert len(text.splitlines()) < 20
    assert re.search(r"\n +60 ", text)


def test_nothing_done_is_one_line() -> None:
    assert shown(ended(4, 0, finished=False)).count("\n") == 1


def test_miners_without_an_attack_are_not_called_hostile() -> None:
    result = ended(8, 4)
    honest = replace(result, config=replace(result.config, attack="none"))
    assert "after 4 rounds of 8 miners, default" in shown(honest)


def test_a_run_whose_rounds_are_done_says_so(tmp_path: Path) -> None:
    for said in (False, True):
        with start("--miners", "1", "--rounds", "1", "--run.dir", "run", cwd=tmp_path) as child:
            out, err = child.communicate(timeout=100)
        assert child.returncode == 0, err
        assert ("nothing to do: round 1 is done, --rounds is 1; a larger one goes on" in out + err) is said
        assert ("looking for miners" in out + err) is not said


def test_a_kept_round_says_why() -> None:
    assert "kept: loss_gate" in shown(ended(4, 1))
