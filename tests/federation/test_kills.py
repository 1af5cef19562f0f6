"""Processes killed mid-round: a miner costs its share, a validator costs nothing."""

import contextlib
import json
import sqlite3
import time

from fedgpt2.ranking.table import REVISION

ROUND_SECONDS = ("--round.deadline", 60)


def of(rows, hotkey):
    """What the rounds say of a miner."""
    return [next((m for m in row["miners"] if m["hotkey"] == hotkey), None) for row in rows]


def test_a_miner_killed_mid_round_costs_its_share_and_is_used_again(federation, miners, gate):
    slow, honest = federation.gated_miner(gate), miners[0]
    validator = federation.validator([honest, slow], *ROUND_SECONDS, rounds=0)
    gate.wait_for_call(1, validator, slow)
    slow.kill()
    killed = time.monotonic()
    validator.wait_for("round 1 ")
    assert time.monotonic() - killed < 20  # the deadline is 60 s
    row = federation.rows()[0]
    assert row["applied"]
    (lost,) = of([row], slow.hotkey)
    assert (lost["status"], lost["reason"], lost["fault"]) == ("failed", "unreachable", "NETWORK")
    (other,) = of([row], honest.hotkey)
    assert (other["status"], other["weight"]) == ("admitted", 1.0)

    gate.open()
    again = federation.gated_miner(gate, port=slow.port)
    again.wait_for("admitted by")
    validator.interrupt()
    rows = federation.rows()
    assert [r["round"] for r in rows] == list(range(1, len(rows) + 1))
    assert len(rows[1]["miners"]) == 1  # not asked while it was away
    assert any(share["status"] == "admitted" for share in of(rows, slow.hotkey) if share)


def test_a_killed_validator_collects_the_answers_already_computed(federation, miners, gate):
    slow, fast = federation.gated_miner(gate), federation.miner("M1")
    gate.let(1)
    first = federation.validator([fast, slow], *ROUND_SECONDS)
    gate.wait_for_call(2, first, slow)
    fast.wait_for("round 2: answered")
    first.kill()
    gate.open()
    slow.wait_for("round 2: answered")
    second = federation.validator([fast, slow], *ROUND_SECONDS)
    second.ended()
    assert second.lines("going on after round 1")
    assert [row["round"] for row in federation.rows()] == [1, 2, 3]
    assert all(miner["status"] == "admitted" for row in federation.rows() for miner in row["miners"])
    assert gate.calls == 3
    for miner in (fast, slow):
        assert len(miner.lines("round 2: 4 windows")) == 1  # the order was the same, so there was nothing to do
        assert len(miner.lines("round 2: answered")) == 1
        receipts = (federation.folder / miner.name / miner.hotkey / "receipts.jsonl").read_text().splitlines()
        receipted = [json.loads(json.loads(line)["payload"]) for line in receipts]
        assert [(each["round"], each["status"]) for each in receipted] == [(n, "admitted") for n in (1, 2, 3)]
        assert len({each["work_id"] for each in receipted}) == 3
    assert federation.ledger("SELECT DISTINCT attempt FROM entries") == [(0,)]
    assert federation.ledger("SELECT * FROM admissions") == []  # every round they were for is committed


def test_rounds_after_the_last_checkpoint_run_again_to_the_same_weights(federation, miners, gate):
    slow, honest = federation.gated_miner(gate), miners[0]
    flags = (*ROUND_SECONDS, "--checkpoint.every", 3)
    gate.let(4)
    first = federation.validator([honest, slow], *flags, rounds=6)
    gate.wait_for_call(5, first, slow)
    first.kill()
    assert [row["round"] for row in federation.rows()] == [1, 2, 3, 4]
    assert federation.checkpoint(3).is_dir()
    taken_back = federation.rows()[3]

    gate.open()
    second = federation.validator([honest, slow], *flags, rounds=6)
    second.ended()
    assert second.lines("going on after round 3")
    rows = federation.rows()
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(miner["status"] == "admitted" for row in rows for miner in row["miners"])
    assert rows[3]["model"] == taken_back["model"]
    attempts = federation.ledger("SELECT kind, round, attempt FROM entries ORDER BY seq")
    assert attempts[4:6] == [("resume", 3, 1), ("round", 4, 1)]
    assert [entry[2] for entry in attempts] == [0] * 4 + [1] * 4

    whole = federation.validator([honest, slow], *flags, rounds=6, run="whole")
    whole.ended()
    for name in ("model.safetensors", "optimizer.safetensors"):
        resumed, uninterrupted = federation.checkpoint(6) / name, federation.checkpoint(6, "whole") / name
        assert resumed.read_bytes() == uninterrupted.read_bytes()


def test_rounds_of_another_revision_are_ranked_again_and_it_is_said(federation, miners):
    federation.validator(miners, rounds=1).ended()
    with contextlib.closing(sqlite3.connect(federation.folder / "run" / "ledger.sqlite")) as database, database:
        here = f'"revision":{REVISION}'
        changed = database.execute("UPDATE entries SET body = replace(body, ?, ?)", (here, '"revision":1'))
        assert changed.rowcount > 0
    second = federation.validator(miners, rounds=2)
    second.ended()
    assert second.lines("1 round ranked by another revision of the rule: ranked again by this one")
