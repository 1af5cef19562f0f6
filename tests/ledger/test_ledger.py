"""The ledger: one transaction a round, an append-only chain, resumes that take rounds back."""

import hashlib
import os
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from fedgpt2.errors import DiskFullError, RunDirectoryError
from fedgpt2.ledger.ledger import FORMAT, Admission, Ledger
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.ledger.round_lines import RoundLines
from fedgpt2.protocol.round_record import encode_record
from fedgpt2.types import Digest, Hotkey, WorkId
from tests.records import miner_record, round_record


@pytest.fixture
def ledger(tmp_path: Path):
    opened = Ledger(tmp_path / "ledger.sqlite")
    opened.create("ab" * 32)
    yield opened
    opened.close()


def commit(ledger: Ledger, number: int, *hotkeys: str, checkpoint: str | None = None, delivered=(), **changes):
    """Commit round `number`, in which these miners had orders; its receipts."""
    miners = [miner_record(hotkey, work_id=work_of(number, hotkey)) for hotkey in hotkeys]
    record = round_record(number, miners, **changes)
    return ledger.commit_round(record, sender=Hotkey("v"), checkpoint=checkpoint, delivered=delivered)


def work_of(number: int, hotkey: str) -> WorkId:
    return WorkId(f"{number}{hotkey}".encode().hex().rjust(64, "0"))


def numbers(ledger: Ledger) -> list[int]:
    return [record.round for record in ledger.records()]


def test_heads_form_a_chain_that_anyone_can_recompute(ledger: Ledger) -> None:
    head = hashlib.sha256(("ab" * 32).encode()).hexdigest()
    assert ledger.head == head
    for number in (1, 2, 3):
        record = round_record(number)
        head = hashlib.sha256(head.encode() + encode_record(record)).hexdigest()
        ledger.commit_round(record, sender=Hotkey("v"))
        assert ledger.head == head
    assert ledger.broken_entry() is None


def test_an_edited_row_shows(ledger: Ledger, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        commit(ledger, number)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE entries SET body = replace(body, '\"lr\":0.001', '\"lr\":0.002') WHERE seq = 2")
    db.close()
    assert ledger.broken_entry() == 2


def test_of_a_long_run_one_round_at_a_time_is_held(ledger: Ledger, tmp_path: Path) -> None:
    for number in range(1, 41):
        commit(ledger, number, reason="x" * 100_000)
    lines = RoundLines(tmp_path / "rounds.jsonl")
    tracemalloc.start()
    lines.rewrite(ledger.lines())
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
        commit(ledger, number, checkpoint=f"round-{number:06d}")
        if number in (5, 200):
            steps.clear()
            assert ledger.checkpoints(2) == [(each, f"round-{each:06d}") for each in (number, number - 1)]
            costs.append(len(steps))
    assert costs[0] == costs[1]
    assert [number for number, _ in ledger.checkpoints()] == list(range(200, 0, -1))


def test_a_round_must_be_the_next_one(ledger: Ledger) -> None:
    commit(ledger, 1)
    for number in (1, 3):
        with pytest.raises(RunDirectoryError, match=f"round {number} after round 1"):
            commit(ledger, number)


def test_a_resume_takes_rounds_back_without_rewriting_them(ledger: Ledger) -> None:
    for number in (1, 2, 3, 4):
        commit(ledger, number, checkpoint="round-000002" if number == 2 else None)
    ledger.commit_resume(2, 1)
    assert (ledger.last_round(), ledger.attempt()) == (2, 1)
    commit(ledger, 3, attempt=1)
    assert [(record.round, record.attempt) for record in ledger.records()] == [(1, 0), (2, 0), (3, 1)]
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
        commit(ledger, number, model=f"{number}" * 64)
    ledger.commit_resume(1, 1)
    assert ledger.model_after(1) == "1" * 64
    with pytest.raises(RunDirectoryError, match="round 2 is damaged, or does not stand"):
        ledger.model_after(2)
    commit(ledger, 2, attempt=1, model="3" * 64)
    assert ledger.model_after(2) == "3" * 64


@pytest.mark.parametrize("body", ["{", "{}", '{"model": 1}'])
def test_a_round_that_does_not_say_what_it_left_is_one_line(ledger: Ledger, body: str) -> None:
    commit(ledger, 1)
    ledger._rows("UPDATE entries SET body = ?", body)
    with pytest.raises(RunDirectoryError, match="round 1 is damaged, or does not stand"):
        ledger.model_after(1)


def leased(ledger: Ledger, number: int, hotkeys: str, *, max_slots: int = 3, lease: int = 3) -> dict[str, int]:
    return ledger.lease_slots([Hotkey(hotkey) for hotkey in hotkeys], number, max_slots, lease)


def test_a_miner_keeps_its_slot_while_it_is_there(ledger: Ledger) -> None:
    for number in range(1, 12):
        assert leased(ledger, number, "ab") == {"a": 0, "b": 1}
    assert leased(ledger, 12, "ba") == {"b": 1, "a": 0}


def test_a_slot_that_lapsed_goes_to_the_next_miner_and_no_sooner(ledger: Ledger) -> None:
    assert leased(ledger, 1, "abc") == {"a": 0, "b": 1, "c": 2}
    for number in (2, 3, 4):
        assert leased(ledger, number, "bcd") == {"b": 1, "c": 2}  # a's lease runs
        assert not ledger.has_slot(Hotkey("d"), number, 3, 3, [Hotkey("b"), Hotkey("c")])
    assert ledger.has_slot(Hotkey("d"), 5, 3, 3, [Hotkey("b"), Hotkey("c")])
    assert leased(ledger, 5, "bcd") == {"b": 1, "c": 2, "d": 0}
    assert leased(ledger, 6, "abcd") == {"b": 1, "c": 2, "d": 0}  # a is a newcomer now
    assert leased(ledger, 20, "bda") == {"b": 1, "d": 0, "a": 2}


def test_the_slot_unused_longest_lapses_first_and_new_ones_before_it(ledger: Ledger) -> None:
    leased(ledger, 1, "a")
    leased(ledger, 2, "b")
    assert leased(ledger, 30, "cde") == {"c": 2, "d": 0, "e": 1}


def test_fewer_or_more_slots_than_before(ledger: Ledger) -> None:
    leased(ledger, 1, "abc")
    assert leased(ledger, 2, "abc", max_slots=2) == {"a": 0, "b": 1}
    assert leased(ledger, 3, "abcd", max_slots=4) == {"a": 0, "b": 1, "c": 2, "d": 3}


def admitted(ledger: Ledger) -> list[tuple[object, ...]]:
    return ledger._rows("SELECT round, attempt, hotkey FROM admissions ORDER BY round, hotkey")


def test_the_admitted_set_stays_until_its_round_is_committed_or_taken_back(ledger: Ledger) -> None:
    one, two = (Admission(Hotkey(k), WorkId(k * 64), Digest(k * 64), 10) for k in "ab")
    ledger.admit(1, 0, [two, one])
    assert admitted(ledger) == [(1, 0, "a"), (1, 0, "b")]
    ledger.admit(1, 0, [one])
    assert admitted(ledger) == [(1, 0, "a")]
    commit(ledger, 1)
    assert admitted(ledger) == []
    ledger.admit(2, 0, [one])
    ledger.commit_checkpoint(1, 0, "round-000001")
    assert admitted(ledger) == [(2, 0, "a")]
    ledger.commit_resume(1, 1)
    assert admitted(ledger) == []


def test_a_ledger_of_another_format_is_refused_and_left_as_it_is(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, 1, model="1" * 64, checkpoint="round-000001")
    ledger._rows("DELETE FROM meta WHERE key = 'format'")
    ledger._rows("DROP TABLE slots")
    ledger.close()
    with pytest.raises(RunDirectoryError, match=f"has format 1, not {FORMAT}: .*export.*sample.* still read its"):
        Ledger(tmp_path / "ledger.sqlite")
    with closing(Ledger(tmp_path / "ledger.sqlite", reading=True)) as reader:
        assert (reader.model_after(1), reader.checkpoints()) == ("1" * 64, [(1, "round-000001")])
        with pytest.raises(RunDirectoryError, match="has format 1"):
            next(reader.records())
        assert reader._rows("SELECT 1 FROM sqlite_master WHERE name = 'slots'") == []


@pytest.mark.parametrize(("body", "why"), [("{", "is damaged"), ('{"round":1,"x":2}', "is damaged")])
def test_a_damaged_record_is_one_line(ledger: Ledger, body: str, why: str) -> None:
    commit(ledger, 1)
    ledger._rows("UPDATE entries SET body = ?", body)
    with pytest.raises(RunDirectoryError, match=f"the record of round 1 {why}"):
        list(ledger.records())


def test_a_record_of_another_round_is_one_line(ledger: Ledger) -> None:
    commit(ledger, 1)
    ledger._rows("UPDATE entries SET body = replace(body, '\"round\":1', '\"round\":7')")
    with pytest.raises(RunDirectoryError, match="the record of round 1 is of round 7"):
        list(ledger.records())


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
    commit(ledger, 1)
    ((pages,),) = ledger._rows("PRAGMA page_count")
    ledger._rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="no space left"):
        commit(ledger, 2, reason="x" * 100_000)
    assert numbers(ledger) == [1]


def reopened(folder: Path) -> Outbox:
    """What waits, as a validator finds it that starts now."""
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        return Outbox(ledger.waiting_receipts())


def rounds_of(outbox: Outbox, hotkey: str) -> list[int]:
    return [receipt.round for receipt in outbox.waiting(hotkey)]


def test_receipts_wait_in_the_ledger_until_they_have_arrived(ledger: Ledger, tmp_path: Path) -> None:
    outbox = Outbox(commit(ledger, 1, "a", "b"))
    head = ledger.head
    outbox.add(commit(ledger, 2, "b"))
    first, second = outbox.waiting("b")
    assert (first.ledger_head, second.ledger_head) == (head, ledger.head)
    outbox.remove(first)
    assert rounds_of(reopened(tmp_path), "b") == [1, 2]  # if it were killed now
    delivered = outbox.delivered()
    outbox.add(commit(ledger, 3, "b", delivered=delivered))
    outbox.forget(delivered)
    assert rounds_of(reopened(tmp_path), "b") == [2, 3]
    outbox.remove(second)
    ledger.settle(outbox.delivered())
    ledger.settle(outbox.delivered())
    again = reopened(tmp_path)
    assert (rounds_of(again, "a"), rounds_of(again, "b")) == ([1], [3])
    assert ledger.broken_entry() is None


def test_rounds_taken_back_have_receipts_all_the_same(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, 1, "a")
    ledger.commit_resume(0, 1)
    assert rounds_of(reopened(tmp_path), "a") == [1]


def test_a_round_there_was_no_room_for_has_no_receipts(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, 1, "a")
    ((pages,),) = ledger._rows("PRAGMA page_count")
    ledger._rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError):
        commit(ledger, 2, "a", reason="x" * 100_000, delivered=[work_of(1, "a")])
    assert rounds_of(reopened(tmp_path), "a") == [1]  # nothing of the transaction happened


def test_a_receipt_of_another_version_is_left_for_that(ledger: Ledger, tmp_path: Path) -> None:
    commit(ledger, 1, "a", "b")
    ledger._rows("UPDATE outbox SET receipt = json_set(receipt, '$.later', 1) WHERE receipt LIKE '%\"a\"%'")
    assert (reopened(tmp_path).waiting("a"), rounds_of(reopened(tmp_path), "b")) == ([], [1])
    assert ledger.unreadable_receipts() == 1


def test_a_miner_that_never_takes_receipts_loses_the_oldest(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgpt2.ledger.outbox.MAX_WAITING", 3)
    outbox = Outbox()
    for number in range(1, 6):
        outbox.add(commit(ledger, number, "a"))
    assert rounds_of(outbox, "a") == [3, 4, 5]
    assert (outbox.newly_overflowing(), outbox.newly_overflowing()) == (["a"], [])
    assert len(outbox.delivered()) == 2
    outbox.forget(outbox.delivered())
    assert outbox.delivered() == ()
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
    commit(ledger, 1)
    with closing(Ledger(tmp_path / "ledger.sqlite", reading=True)) as reader:
        commit(ledger, 2)
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
    commit(ledger, 1)
    wal = (tmp_path / "ledger.sqlite-wal").read_bytes()
    ledger.close()
    (tmp_path / "ledger.sqlite-shm").symlink_to("nowhere")  # in its place
    with closing(Ledger(tmp_path / "ledger.sqlite", reading=True)) as reader:
        assert reader.last_round() == 1
    (tmp_path / "ledger.sqlite-wal").write_bytes(wal)
    with pytest.raises(RunDirectoryError, match=r"rounds wait in ledger\.sqlite-wal: copy the run to"):
        Ledger(tmp_path / "ledger.sqlite", reading=True)
