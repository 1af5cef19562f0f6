"""A whole round without sockets: what is written of it, what it refuses, what a stop leaves behind."""

import asyncio
import json
import threading

import pytest
import torch

from fedgpt2.errors import Culprit, NoMinersError, ProtocolError, Reason, Refused, SetupError
from fedgpt2.event_loop import Stopped
from fedgpt2.link.base import OrderResult
from fedgpt2.protocol.messages import Receipt, decode, encode
from fedgpt2.protocol.tensors import read_header
from fedgpt2.validator.membership import assign_slots
from fedgpt2.validator.training import Training
from tests.records import miner_record, round_record

from .conftest import MINERS, answer, gone, nan, run_row, with_settings, wrong_order

# DESIGN §2, and what this version adds.
ROW = {"round", "parent", "model", "applied", "reason", "train_loss", "val_loss", "lr", "tokens", "seconds", "bytes"}
ROW |= {"miners"} | {"norm", "rule", "f", "gate", "evidence", "attempt", "initial_val_loss"}
SECONDS = {"total", "send", "wait", "receive", "admit", "rank", "aggregate", "step", "checkpoint"}
SECONDS |= {"snapshot", "gate", "evaluate"}
MINER = {"hotkey", "axon", "status", "fault", "reason", "claimed_loss", "tokens", "seconds", "bytes_down", "bytes_up"}
MINER |= {"norm", "score", "rating", "weight"} | {"detail", "cluster", "sigma", "pay", "verdict", "rank"}
MINER |= {"slot", "work_id", "committed", "digest", "ranking"}


def good(value):
    return lambda issued: answer(issued, value)


MIXED = dict(zip(MINERS, (good(1e-3), nan, good(2e-3), gone), strict=False))


async def test_a_round_has_exactly_the_names_of_the_design(running, config):
    with running(config, MIXED) as run:
        rows = [await run_row(run, number, 0) for number in (1, 2, 3)]
        lines = [json.loads(line) for line in run.directory.lines.path.read_text().splitlines()]
    assert json.loads(json.dumps(rows)) == lines
    for number, row in enumerate(lines, 1):
        assert set(row) == ROW
        assert (row["initial_val_loss"] is not None) == (number == 1)
        assert set(row["seconds"]) == SECONDS
        assert set(row["bytes"]) == {"down", "up"}
        assert all(set(miner) == MINER for miner in row["miners"])
    assert [len(row["miners"]) for row in lines] == [4, 4, 3]  # who was gone twice sits out
    assert [row["val_loss"] is not None for row in lines] == [False, True, True]  # every 2nd, and the last
    assert [row["parent"] for row in lines[1:]] == [row["model"] for row in lines[:2]]


async def test_the_same_names_when_nobody_is_admitted(running, config):
    with running(config, {MINERS[0]: nan, MINERS[1]: wrong_order}) as run:
        row = await run_row(run, 1, 0)
    assert set(row) == ROW
    assert set(row["seconds"]) == SECONDS
    assert (row["applied"], row["reason"], row["lr"], row["norm"], row["tokens"]) == (False, "too_few", 0.0, None, 0)
    assert row["model"] == row["parent"]


async def test_tokens_and_weights_are_those_assigned_whatever_is_claimed(running, config):
    with running(config, MIXED) as run:
        row = await run_row(run, 1, 0)
        before = Training(config, torch.device("cpu")).weights
        moved = (run.training.weights.flat - before.flat).abs().max()
    shares = {miner["hotkey"]: miner for miner in row["miners"]}
    assert [shares[hotkey]["status"] for hotkey in MINERS[:4]] == ["admitted", "refused", "admitted", "failed"]
    assert [shares[hotkey]["reason"] for hotkey in MINERS[:4]] == [None, "non_finite", None, "unreachable"]
    assert [shares[hotkey]["fault"] for hotkey in MINERS[:4]] == [None, "MINER", None, "NETWORK"]
    assert [shares[hotkey]["weight"] for hotkey in MINERS[:4]] == [0.5, 0.0, 0.5, 0.0]
    assert [shares[hotkey]["tokens"] for hotkey in MINERS[:4]] == [256] * 4  # assigned
    assert [shares[hotkey]["claimed_loss"] for hotkey in MINERS[:4]] == [9.5, 9.5, 9.5, None]
    assert row["tokens"] == 512
    assert row["bytes"]["down"] == 300
    assert moved > 0


async def test_every_miner_with_an_order_gets_a_receipt_after_the_commit(running, config):
    with running(config, MIXED) as run:
        row = await run_row(run, 1, 0)
        await run.collector.close()
        head = run.directory.ledger.head
    receipts = {}
    for hotkey in MINERS[:4]:
        ((issued,), (receipt,)) = running.links[hotkey].orders, running.links[hotkey].receipts
        receipts[hotkey] = receipt
        assert (receipt.sender, receipt.receiver) == (issued.order.sender, hotkey)
        assert (receipt.round, receipt.work_id) == (1, issued.work_id)
        assert (receipt.applied, receipt.model, receipt.ledger_head) == (True, row["model"], head)
    nan_receipt, lost_receipt = receipts[MINERS[1]], receipts[MINERS[3]]
    assert (nan_receipt.status, nan_receipt.reason) == ("refused", "non_finite")
    assert (nan_receipt.culprit, nan_receipt.detail) == (Culprit.MINER, "holds NaN or Inf")
    assert (lost_receipt.status, lost_receipt.culprit, lost_receipt.weight) == ("failed", Culprit.NETWORK, 0.0)
    assert (receipts[MINERS[0]].weight, receipts[MINERS[0]].tokens) == (0.5, 256)


async def test_receipts_outlive_a_validator_that_is_killed_before_they_leave(running, config, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with running(config, MIXED) as run:
        monkeypatch.setattr(run.collector, "deliver", killed)
        with pytest.raises(Killed):
            await run_row(run, 1, 0)
    with running(config, MIXED) as run:
        assert run.directory.ledger.last_round() == 1
        await run_row(run, 2, 0)
        await run.collector.close()
        ((head,),) = run.directory.ledger._rows("SELECT head FROM entries WHERE kind = 'round' AND round = 1")
    for hotkey in MINERS[:4]:
        first, second = running.links[hotkey].receipts
        assert (first.round, first.ledger_head, second.round) == (1, head, 2)
    with running(config, MIXED) as run:
        assert run.directory.outbox.waiting(MINERS[0]) == []


def scrawler(issued):
    """A miner whose tensors are of a type that no encoding of Unicode can write."""
    with pytest.raises(ProtocolError) as caught:
        read_header(b'{"w":{"dtype":"\\ud800","shape":[],"data_offsets":[0,4]}}', {"w": ()}, "F32")
    return OrderResult(issued, failure=caught.value, answered=True)


async def test_a_run_goes_on_after_a_miner_that_wrote_what_cannot_be_encoded(running, config):
    with running(config, {MINERS[0]: good(1e-3), MINERS[1]: scrawler}) as run:
        await run_row(run, 1, 0)
        await run.collector.close()
        (receipt,) = running.links[MINERS[1]].receipts
        assert decode(encode(receipt), Receipt).detail == "w: dtype \ufffd, not F32"
        assert [record.round for record in run.directory.ledger.records()] == [1]


async def test_the_admitted_set_is_committed_before_the_step(running, config, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt  # as good as a power cut

    with running(config, MIXED) as run:
        monkeypatch.setattr(Training, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            await run_row(run, 1, 0)
        admitted = run.directory.ledger._rows("SELECT hotkey FROM admissions WHERE round = 1 ORDER BY hotkey")
        assert admitted == [(hotkey,) for hotkey in sorted([MINERS[0], MINERS[2]])]
        assert run.directory.ledger.last_round() == 0
        assert not run.directory.outbox


async def test_a_step_that_is_refused_keeps_the_weights_and_says_why(running, config, monkeypatch):
    def refused(*_):
        raise Refused(Reason.NON_FINITE, "", Culprit.VALIDATOR)

    with running(config, MIXED) as run:
        monkeypatch.setattr(run.training.optimizer, "clip", refused)
        row = await run_row(run, 1, 0)
    assert (row["applied"], row["reason"], row["model"]) == (False, "non_finite", row["parent"])
    assert {miner["weight"] for miner in row["miners"]} == {0.0}


async def test_each_miner_keeps_its_slot_and_those_over_the_last_have_none(running, config):
    with running(config, dict.fromkeys(MINERS, good(1e-3))) as run:
        present = await run.collector.present(1)
        assert [(slot, miner.hotkey) for miner, slot in assign_slots(run, present, 1)] == list(enumerate(MINERS[:4]))
        again = assign_slots(run, present[::-1], 2)
        assert [miner.hotkey for miner, _ in again] == MINERS[:4]


async def test_where_every_slot_is_anothers_no_empty_rounds_are_run(running, config):
    with running(config, dict.fromkeys(MINERS, good(1e-3))) as run:
        present = await run.collector.present(1)
        assign_slots(run, present[:4], 1)
        with pytest.raises(NoMinersError, match="all 4 slots are leased to other miners"):
            assign_slots(run, present[4:], 2)


async def test_who_has_no_slot_is_nobody_to_work_with(running, config):
    """The only miner with a slot is suspended: it gets work all the same, since the other has no slot."""
    with running(config, dict.fromkeys(MINERS, good(1e-3))) as run:
        present = await run.collector.present(1)
        assign_slots(run, present[:4], 1)
        for number in (1, 2):
            run.suspensions.add(round_record(number, [miner_record(present[0].hotkey, reason="late")]))
        assert [miner for miner, _ in assign_slots(run, [present[0], present[4]], 3)] == [present[0]]


class Blocked:
    """A loss that takes until it is let go, the `nth` time it is measured."""

    def __init__(self, monkeypatch, nth):
        self.entered, self.go = threading.Event(), threading.Event()
        calls, real = [], Training.loss

        def loss(training, windows):
            calls.append(1)
            if len(calls) == nth:
                self.entered.set()
                self.go.wait(10)
            return real(training, windows)

        monkeypatch.setattr(Training, "loss", loss)


async def stopped_while(blocked, run):
    """The round, told to stop once the loss is being measured; the thread ends only afterwards."""
    round_ = asyncio.create_task(run_row(run, 1))
    assert await asyncio.to_thread(blocked.entered.wait, 10)
    run.stop.set()
    try:
        return await asyncio.wait_for(round_, 5)
    finally:
        blocked.go.set()


async def test_a_stop_while_a_loss_is_measured_before_the_step_changes_nothing(running, config, monkeypatch):
    blocked = Blocked(monkeypatch, 1)
    with running(config, MIXED) as run:
        before = run.training.digest()
        with pytest.raises(Stopped):
            await stopped_while(blocked, run)
        assert run.directory.ledger.last_round() == 0
        assert run.training.digest() == before
        assert not run.directory.outbox


async def test_a_stop_while_a_loss_is_measured_after_the_step_loses_that_loss_only(running, config, monkeypatch):
    blocked = Blocked(monkeypatch, 3)  # train, which is the loss before a trial too; initial, held out
    with running(with_settings(config, run={"eval_every": 1}), MIXED) as run:
        row = await stopped_while(blocked, run)
        assert (row["applied"], row["val_loss"]) == (True, None)
        assert run.directory.ledger.last_round() == 1
        assert [name for _, name in run.directory.ledger.checkpoints()] == ["round-000001"]


async def test_weights_that_have_diverged_are_one_clear_line(running, config):
    with running(config, MIXED) as run:
        run.training.weights.flat[0] = float("inf")
        with pytest.raises(SetupError, match="the loss is nan: training has diverged; start a run with a lower"):
            await run_row(run, 1, 0)
