"""Ctrl-C: every process ends within 5 s with 0, and what was done stays done; a second one leaves at once."""

import signal
import time

from .federation import free_port
from .program import Spawned, wait_until


def test_in_the_middle_of_real_arithmetic(federation):
    """As people start them, while torch computes in both processes' threads."""
    sample = ("--data.source", "sample")
    miner = federation.miner("M1", *sample, kind=Spawned)
    settings = (*sample, "--model.preset", "nano", "--data.windows", 200, "--data.max_pages", 64)
    validator = federation.validator([miner], *settings, rounds=0, kind=Spawned)
    miner.wait_for("round 1: 200 windows")
    time.sleep(0.7)
    assert not miner.lines("round 1: answered")
    began = time.monotonic()
    for program in (validator, miner):
        program.signal(signal.SIGINT)
    for program in (validator, miner):
        program.ended(0, began + 5 - time.monotonic())
    assert validator.lines("stopped before the end of round 1; start again to go on from there")
    assert miner.lines("stopped")
    assert federation.rows() == []


def test_nothing_is_lost_and_a_second_one_leaves_at_once(federation, miners, gate):
    slow = federation.gated_miner(gate)
    gate.let(2)
    first = federation.validator([miners[0], slow], "--checkpoint.every", 5)
    gate.wait_for_call(3, first, slow)
    first.interrupt()
    assert first.lines("stopped before the end of round 3")
    assert [row["round"] for row in federation.rows()] == [1, 2]
    assert federation.checkpoint(2).is_dir()  # though none was due

    slow.signal(signal.SIGINT)  # its plugin never looks up, so it would take a moment
    time.sleep(0.3)
    slow.signal(signal.SIGINT)
    slow.ended(130, 1.0)

    gate.open()
    again = federation.gated_miner(gate, port=slow.port)
    second = federation.validator([miners[0], again], "--checkpoint.every", 5)
    second.ended()
    assert second.lines("going on after round 2")
    assert [row["round"] for row in federation.rows()] == [1, 2, 3]
    assert all(miner["status"] == "admitted" for miner in federation.rows()[2]["miners"])
    assert federation.ledger("SELECT kind, attempt FROM entries WHERE kind = 'resume'") == []


LOST = "output lost (Broken pipe); what is done goes on without it"


def test_nothing_is_lost_when_nobody_reads_what_is_said(federation, miners):
    """Ctrl-C on `validator | tee log` ends tee first."""
    validator = federation.validator(miners, "--checkpoint.every", 1000, rounds=0, program="gone_reader:main")
    wait_until(lambda: len(federation.rows()) > 1, "round 2", [validator])
    validator.signal(signal.SIGINT)
    assert validator.complaint(1, 5.0) == LOST
    assert federation.checkpoint(len(federation.rows())).is_dir()


def test_a_miner_serves_on_when_nobody_reads_what_it_says(federation, miners):
    silent = free_port()
    flags = ("--wallet.name", "miners", "--wallet.hotkey", "M1", "--run.dir", federation.folder / "M1")
    where = ("--axon.port", silent, "--wallet.path", federation.wallets, "--device", "cpu")
    source = ("--data.source", federation.source)
    miner = federation.start("M1", ["miner", *flags, *where, *source], program="gone_reader:main")
    federation.validator([miners[0], silent]).ended()
    assert [row["miners"][1]["status"] for row in federation.rows()] == ["admitted"] * 3
    miner.signal(signal.SIGINT)
    assert miner.complaint(1, 5.0) == LOST


def test_a_miner_whose_computation_does_not_end_ends_all_the_same(federation, miners, gate):
    slow = federation.gated_miner(gate)
    validator = federation.validator([miners[0], slow], rounds=0)
    gate.wait_for_call(1, validator, slow)
    slow.interrupt()
    assert slow.lines("stopped")
    validator.wait_for("round 1 ")
    validator.interrupt()


def test_while_waiting_for_miners(federation, shared):
    validator = federation.validator([1], rounds=0)
    validator.wait_for("going on without it")
    validator.interrupt()
    assert validator.lines("stopped before the end of round 1")
