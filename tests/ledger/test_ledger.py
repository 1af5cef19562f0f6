"""The ledger: one transaction a round, an append-only chain, resumes that take rounds back."""

import hashlib
import json
import os
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from fedgpt2.errors import DiskFullError, RunDirectoryError
from fedgpt2.ledger.ledger import Admission, Ledger, Receipts
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.ledger.round_lines import RoundLines
from fedgpt2.protocol.messages import Receipt
from fedgpt2.types import Digest, Hotkey


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    opened.set_meta({"run_id": "ab" * 32})
    yield opened
    opened.close()


def test_heads_form_a_chain_that_anyone_can_recompute(ledger: Ledger) -> None:
    head = hashlib.sha256(("ab" * 32).encode()).hexdigest()
    assert ledger.head == head
    for number in (1, 2, 3):
        row = {"round": number, "loss": 1.5}
        head = hashlib.sha256(head.encode() + json.dumps(row, separators=(",", ":")).encode()).hexdigest()
        assert ledger.commit_round(number, 0, row, None) == head == ledger.head
    assert ledger.broken_entry() is None


def test_an_edited_row_shows(ledger: Ledger, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        ledger.commit_round(number, 0, {"round": number}, None)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute('UPDATE entries SET body = \'{"round":2,"x":1}\' WHERE seq = 2')
    db.close()
    assert ledger.broken_entry() == 2


def test_of_a_long_run_one_round_at_a_time_is_held(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(1, 41):
        ledger.commit_round(number, 0, {"round": number, "text": "x" * 100_000}, None)
    lines = RoundLines(tmp_path / "rounds.jsonl")
    tracemalloc.start()
    lines.rewrite(ledger.rounds())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lines.path.read_bytes()) > 4_000_000
    assert peak < 1_000_000
    tracemalloc.start()
    assert ledger.broken_entry() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_last_checkpoints_cost_the_same_after_any_number_of_rounds(ledger: Ledger) -> None:
    steps, costs = [0], []
    ledger._db.set_progress_handler(lambda: steps.append(0), 1)  # of SQLite's machine
    for number in range(1, 201):
        ledger.commit_round(number, 0, {"round": number}, f"round-{number:06d}")
        if number in (5, 200):
            steps.clear()
            assert ledger.checkpoints(2) == [(each, f"round-{each:06d}") for each in (number, number - 1)]
            costs.append(len(steps))
    assert costs[0] == costs[1]
    assert [number for number, _ in ledger.checkpoints()] == list(range(200, 0, -1))


def test_a_round_must_be_the_next_one(ledger: Ledger) -> None:
    ledger.commit_round(1, 0, {}, None)
    for number in (1, 3):
        with pytest.raises(RunDirectoryError, match=f"round {number} after round 1"):
            ledger.commit_round(number, 0, {}, None)


def test_a_resume_takes_rounds_back_without_rewriting_them(ledger: Ledger) -> None:
    for number in (1, 2, 3, 4):
        ledger.commit_round(number, 0, {"round": number}, "round-000002" if number == 2 else None)
    ledger.commit_resume(2, 1)
    assert (ledger.last_round(), ledger.attempt()) == (2, 1)
    ledger.commit_round(3, 1, {"round": 3, "again": True}, None)
    assert [json.loads(body) for body in ledger.rounds()] == [{"round": 1}, {"round": 2}, {"round": 3, "again": True}]
    assert ledger.checkpoints() == [(2, "round-000002")]
    ledger.commit_checkpoint(3, 1, "round-000003")
    assert ledger.checkpoints() == [(3, "round-000003"), (2, "round-000002")]
    ledger.commit_checkpoint(3, 1, "round-000003")
    assert ledger.checkpoints(1) == [(3, "round-000003")]
    ledger.commit_resume(2, 2)
    assert ledger.checkpoints() == ledger.checkpoints(2) == [(2, "round-000002")]
    assert ledger.last_round() == 2
    assert ledger.broken_entry() is None


def test_the_model_after_a_round_is_that_of_the_round_that_stands(ledger: Ledger) -> None:
    for number in (1, 2):
        ledger.commit_round(number, 0, {"round": number, "model": f"{number}" * 64}, None)
    ledger.commit_resume(1, 1)
    assert ledger.model_after(1) == "1" * 64
    with pytest.raises(RunDirectoryError, match="round 2 is damaged, or does not stand"):
        ledger.model_after(2)
    ledger.commit_round(2, 1, {"round": 2, "model": "3" * 64}, None)
    assert ledger.model_after(2) == "3" * 64


@pytest.mark.parametrize("body", ["{", "{}", '{"model": 1}'])
def test_a_round_that_does_not_say_what_it_left_is_one_line(ledger: Ledger, body: str) -> None:
    ledger.commit_round(1, 0, {"round": 1}, None)
    ledger._rows("UPDATE entries SET body = ?", body)
    with pytest.raises(RunDirectoryError, match="round 1 is damaged, or does not stand"):
        ledger.model_after(1)


def test_slots_are_for_the_whole_run(ledger: Ledger) -> None:
    assert [ledger.slot_of(Hotkey(k), 2) for k in ("a", "b", "a", "c")] == [0, 1, 0, None]


def test_the_admitted_set_is_kept_and_replaced_whole(ledger: Ledger) -> None:
    one, two = (Admission(Hotkey(k), k * 64, Digest(k * 64), 10) for k in "ab")
    ledger.admit(1, 0, [two, one])
    assert ledger.admitted(1, 0) == [one, two]
    ledger.admit(1, 0, [one])
    assert ledger.admitted(1, 0) == [one]
    assert ledger.admitted(1, 1) == []


def test_the_admitted_set_is_on_record_as_long_as_its_round_is_not(ledger: Ledger) -> None:
    one = Admission(Hotkey("a"), "1" * 64, Digest("2" * 64), 10)
    ledger.admit(1, 0, [one])
    ledger.commit_round(1, 0, {"round": 1}, None)
    assert ledger._rows("SELECT * FROM admissions") == []
    ledger.admit(2, 0, [one])
    ledger.commit_checkpoint(1, 0, "round-000001")
    assert ledger.admitted(2, 0) == [one]  # told to stop in the middle of a round, it goes on with that
    ledger.commit_resume(1, 1)
    assert ledger._rows("SELECT * FROM admissions") == []


def test_axon_keys_and_facts_survive(ledger: Ledger, tmp_path: Path) -> None:
    ledger.record_axon("127.0.0.1:1", Hotkey("k"))
    ledger.record_axon("127.0.0.1:1", Hotkey("l"))
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.axon_keys() == {"127.0.0.1:1": "l"}
    assert (again.meta("run_id"), again.meta("none")) == ("ab" * 32, None)
    again.close()


def test_a_foreign_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("this is no database, only text of some length" * 20)
    with pytest.raises(RunDirectoryError, match=r"ledger\.sqlite: file is not a database"):
        Ledger(tmp_path / "ledger.sqlite")


def test_a_full_disk_is_one_clear_line_and_loses_nothing(ledger: Ledger) -> None:
    ledger.commit_round(1, 0, {"round": 1}, None)
    ((pages,),) = ledger._rows("PRAGMA page_count")
    ledger._rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="no space left"):
        ledger.commit_round(2, 0, {"round": 2, "text": "x" * 100_000}, None)
    assert [json.loads(body) for body in ledger.rounds()] == [{"round": 1}]


def receipts(number: int, *hotkeys: str) -> Receipts:
    """Of one round, for these miners."""
    return lambda head: {
        Hotkey(hotkey): Receipt(
            run_id="ab" * 32,
            round=number,
            sender="v",
            receiver=hotkey,
            work_id=f"{number}{hotkey}".encode().hex().rjust(64, "0"),
            status="admitted",
            applied=True,
            model="3" * 64,
            ledger_head=head,
        )
        for hotkey in hotkeys
    }


def reopened(folder: Path) -> Outbox:
    """What waits, as a validator finds it that starts now."""
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        return ledger.outbox
    finally:
        ledger.close()


def rounds_of(outbox: Outbox, hotkey: str) -> list[int]:
    return [receipt.round for receipt in outbox.waiting(hotkey)]


def test_receipts_wait_in_the_ledger_until_they_have_arrived(ledger: Ledger, tmp_path: Path) -> None:
    head = ledger.commit_round(1, 0, {"round": 1}, None, None, receipts(1, "a", "b"))
    ledger.commit_round(2, 0, {"round": 2}, None, None, receipts(2, "b"))
    first, second = ledger.outbox.waiting("b")
    assert (first.ledger_head, second.ledger_head) == (head, ledger.head)
    ledger.outbox.arrived(first)
    assert rounds_of(reopened(tmp_path), "b") == [1, 2]  # if it were killed now
    ledger.commit_round(3, 0, {"round": 3}, None, None, receipts(3, "b"))
    assert rounds_of(reopened(tmp_path), "b") == [2, 3]
    ledger.outbox.arrived(second)
    ledger.settle()
    ledger.settle()
    again = reopened(tmp_path)
    assert (rounds_of(again, "a"), rounds_of(again, "b")) == ([1], [3])
    assert ledger.broken_entry() is None


def test_rounds_taken_back_have_receipts_all_the_same(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit_round(1, 0, {"round": 1}, None, None, receipts(1, "a"))
    ledger.commit_resume(0, 1)
    assert rounds_of(reopened(tmp_path), "a") == [1]


def test_a_round_there_was_no_room_for_has_no_receipts(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit_round(1, 0, {"round": 1}, None, None, receipts(1, "a"))
    ledger.outbox.arrived(*ledger.outbox.waiting("a"))
    ((pages,),) = ledger._rows("PRAGMA page_count")
    ledger._rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError):
        ledger.commit_round(2, 0, {"round": 2, "text": "x" * 100_000}, None, None, receipts(2, "a"))
    assert ledger.outbox.waiting("a") == []
    assert len(ledger.outbox.gone()) == 1
    assert rounds_of(reopened(tmp_path), "a") == [1]  # nothing of the transaction happened


def test_a_receipt_of_another_version_is_left_for_that(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit_round(1, 0, {"round": 1}, None, None, receipts(1, "a", "b"))
    ledger._rows("UPDATE outbox SET receipt = json_set(receipt, '$.later', 1) WHERE receipt LIKE '%\"a\"%'")
    assert (reopened(tmp_path).waiting("a"), rounds_of(reopened(tmp_path), "b")) == ([], [1])
    assert ledger.unread() == 1


def test_of_a_miner_that_never_takes_any_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgpt2.ledger.outbox.KEPT", 3)
    outbox = Outbox(receipt for number in range(1, 6) for receipt in receipts(number, "a")(Digest("4" * 64)).values())
    assert rounds_of(outbox, "a") == [3, 4, 5]
    assert len(outbox.gone()) == 2
    outbox.noted(outbox.gone())
    assert outbox.gone() == ()
    assert outbox.waiting("nobody") == []


def test_half_a_round_is_undone_and_the_next_is_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = RoundLines(tmp_path / "rounds.jsonl")
    lines.append('{"round":1}')
    write = os.write
    with monkeypatch.context() as nearly_full:
        nearly_full.setattr("os.write", lambda descriptor, line: write(descriptor, line[: len(line) // 2]))
        with pytest.raises(DiskFullError, match="no space left"):
            lines.append('{"round":2}')
    lines.append('{"round":3}')
    assert lines.path.read_text() == '{"round":1}\n{"round":3}\n'


def test_the_lines_follow_the_ledger(tmp_path: Path) -> None:
    lines = RoundLines(tmp_path / "rounds.jsonl")
    for line in ("1", "2", "3"):
        lines.append(line)
    assert lines.path.read_text() == "1\n2\n3\n"
    lines.rewrite(["1"])
    assert lines.path.read_text() == "1\n"
    lines.rewrite([])
    assert lines.path.read_text() == ""


def test_a_reader_sees_the_ledger_as_it_was_when_opened(ledger: Ledger, tmp_path: Path) -> None:
    """And the validator goes on writing meanwhile."""
    ledger.commit_round(1, 0, {"round": 1}, None)
    with closing(Ledger(tmp_path / "ledger.sqlite", reading=True)) as reader:
        ledger.commit_round(2, 0, {"round": 2}, None)
        assert (reader.last_round(), ledger.last_round()) == (1, 2)
        with pytest.raises(RunDirectoryError, match="readonly database"):
            reader._rows("DELETE FROM entries")
    with closing(Ledger(tmp_path / "ledger.sqlite", reading=True)) as reader:
        assert (reader.last_round(), reader.head) == (2, ledger.head)


def test_a_reader_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"ledger\.sqlite: unable to open database file"):
        Ledger(tmp_path / "ledger.sqlite", reading=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ledger.sqlite").write_text("this is no database, only text of some length" * 20)
    with pytest.raises(RunDirectoryError, match=r"ledger\.sqlite: file is not a database"):
        Ledger(tmp_path / "ledger.sqlite", reading=True)


def test_a_reader_does_without_the_index_that_it_cannot_write(ledger: Ledger, tmp_path: Path) -> None:
    """As on a disk that is only read; tests/cli has a real one, where this process may mount."""
    ledger.commit_round(1, 0, {"round": 1}, None)
    wal = (tmp_path / "ledger.sqlite-wal").read_bytes()
    ledger.close()
    (tmp_path / "ledger.sqlite-shm").symlink_to("nowhere")  # in its place
    with closing(Ledger(tmp_path / "ledger.sqlite", reading=True)) as reader:
        assert reader.last_round() == 1
    (tmp_path / "ledger.sqlite-wal").write_bytes(wal)
    with pytest.raises(RunDirectoryError, match=r"rounds wait in ledger\.sqlite-wal: copy the run to"):
        Ledger(tmp_path / "ledger.sqlite", reading=True)
