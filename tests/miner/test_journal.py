"""What survives a restart, and what a full disk or a broken folder says."""

import json
import os
import sqlite3

import msgspec
import pytest

from fedgpt2.errors import DiskFullError, Reason, Refused, RunDirectoryError
from fedgpt2.miner import journal as module
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.orders import Taken
from fedgpt2.protocol.messages import Envelope

from .test_orders import ORDER

RECEIPT = Envelope(kind="receipt", payload="{}", signer="V", signature="0" * 128)


def order(attempt, round, sender="V", run="c"):
    return msgspec.structs.replace(ORDER, attempt=attempt, round=round, sender=sender, run_id=run * 64)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "miner"


def test_the_newest_order_of_each_run_survives(folder):
    journal = OrderJournal(folder)
    assert journal.newest(ORDER) is None
    journal.record(order(0, 4), "1" * 64)
    journal.record(order(1, 2), "2" * 64)
    journal.record(order(0, 9, run="d"), "3" * 64)
    journal.record(order(0, 7, sender="W"), "4" * 64)
    journal.close()
    journal = OrderJournal(folder)
    assert journal.newest(ORDER) == Taken((1, 2), "2" * 64)
    assert journal.newest(order(0, 0, run="d")) == Taken((0, 9), "3" * 64)
    assert journal.newest(order(0, 0, sender="W")) == Taken((0, 7), "4" * 64)
    journal.close()


def test_the_runs_remembered_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(module, "_RUNS_KEPT", 3)
    journal = OrderJournal(folder)
    for run in "abcdef":
        journal.record(order(0, 1, run=run), "1" * 64)
    assert [journal.newest(order(0, 0, run=run)) is not None for run in "abcdef"] == [False] * 3 + [True] * 3
    journal.close()


def test_a_run_is_remembered_however_many_orders_of_another_come(folder, monkeypatch):
    monkeypatch.setattr(module, "_RUNS_KEPT", 3)
    journal = OrderJournal(folder)
    journal.record(order(0, 7, run="a"), "1" * 64)
    for number in range(10):
        journal.record(order(0, number, run="b"), "2" * 64)
    assert journal.newest(order(0, 0, run="a")) == Taken((0, 7), "1" * 64)
    journal.close()


def test_receipts_are_lines_and_their_file_is_capped(folder):
    journal = OrderJournal(folder, receipts_bytes=1000)
    for number in range(20):
        assert journal.keep_receipt(said(number))
    journal.close()
    kept = [(folder / name).read_text().splitlines() for name in ("receipts.jsonl", "receipts.1.jsonl")]
    assert all(json.loads(line)["kind"] == "receipt" for lines in kept for line in lines)
    assert all((folder / name).stat().st_size <= 1000 for name in ("receipts.jsonl", "receipts.1.jsonl"))
    assert sum(map(len, kept)) >= 3


def lines(folder):
    return (folder / "receipts.jsonl").read_text().splitlines()


def test_a_receipt_that_comes_again_is_kept_once(folder, monkeypatch):
    monkeypatch.setattr(module, "_RECEIPTS_KNOWN", 3)
    journal = OrderJournal(folder)
    assert journal.keep_receipt(RECEIPT)
    journal.close()
    journal = OrderJournal(folder)
    assert not journal.keep_receipt(msgspec.structs.replace(RECEIPT, signature="ab" * 64))  # signed anew
    assert journal.keep_receipt(msgspec.structs.replace(RECEIPT, signer="another"))
    assert journal.keep_receipt(said(0))  # something else of the same work: proof that the validator lied once
    assert len(lines(folder)) == 3
    for number in range(1, 4):
        assert journal.keep_receipt(said(number))
    assert journal._database.execute("SELECT COUNT(*) FROM receipted").fetchone() == (3,)
    journal.close()


def said(number):
    return msgspec.structs.replace(RECEIPT, payload=f"{number}")


def test_half_a_receipt_is_undone_and_comes_again_whole(folder, monkeypatch):
    journal = OrderJournal(folder)
    journal.keep_receipt(said(1))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda descriptor, line: write(descriptor, line[: len(line) // 2]))
        with pytest.raises(DiskFullError):
            journal.keep_receipt(said(2))
    assert len(lines(folder)) == 1
    assert journal.keep_receipt(said(2))
    assert [json.loads(line)["payload"] for line in lines(folder)] == ["1", "2"]
    journal.close()


def test_a_kill_between_a_line_and_its_note_leaves_no_second_line(folder):
    journal = OrderJournal(folder)
    journal.keep_receipt(said(1))
    journal._database.execute("DELETE FROM receipted")
    journal.close()
    with (folder / "receipts.jsonl").open("a") as file:
        file.write('{"kind":"rec')  # and half of another
    journal = OrderJournal(folder)
    assert not journal.keep_receipt(said(1))
    assert journal.keep_receipt(said(2))
    assert [json.loads(line)["payload"] for line in lines(folder)] == ["1", "2"]
    journal.close()


def test_a_line_that_lacks_its_end_is_whole(folder):
    journal = OrderJournal(folder)
    journal.keep_receipt(said(1))
    journal.keep_receipt(said(2))
    journal.close()
    path = folder / "receipts.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    journal = OrderJournal(folder)
    assert not journal.keep_receipt(said(2))
    assert journal.keep_receipt(said(3))
    assert [json.loads(line)["payload"] for line in lines(folder)] == ["1", "2", "3"]
    journal.close()


def test_lines_of_somebody_else_are_left_alone(folder):
    folder.mkdir(parents=True)
    (folder / "receipts.jsonl").write_text("a note\n")
    journal = OrderJournal(folder)
    assert journal.keep_receipt(RECEIPT)
    assert lines(folder)[0] == "a note"
    journal.close()


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"--run\.dir") as error:
        OrderJournal(tmp_path / "file" / "miner")
    assert "\n" not in str(error.value)


def test_a_damaged_journal_is_one_line(folder):
    folder.mkdir(parents=True)
    (folder / "journal.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(RunDirectoryError, match=r"--run\.dir"):
        OrderJournal(folder)


def record_many(journal):
    for run in range(1000):
        journal.record(msgspec.structs.replace(ORDER, run_id=f"{run:064x}"), "1" * 64)


def test_a_full_disk_has_its_own_error(folder, monkeypatch):
    journal = OrderJournal(folder)
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match="no space left"):
        record_many(journal)
    assert journal.newest(msgspec.structs.replace(ORDER, run_id=f"{0:064x}")) is not None

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(DiskFullError, match="no space left"):
        journal.keep_receipt(RECEIPT)
    journal.close()


def test_files_that_cannot_be_opened_now_do_not_end_the_miner(folder, monkeypatch):
    def none_left(*_arguments):
        raise OSError(24, "Too many open files")

    journal = OrderJournal(folder)
    monkeypatch.setattr("fedgpt2.miner.journal.append_line", none_left)
    with pytest.raises(Refused, match="too many open files") as error:
        journal.keep_receipt(RECEIPT)
    assert error.value.reason is Reason.BUSY
    journal.close()


def test_an_error_of_a_closed_database_is_typed(folder):
    journal = OrderJournal(folder)
    journal.close()
    with pytest.raises(RunDirectoryError) as error:
        journal.newest(ORDER)
    assert isinstance(error.value.__cause__, sqlite3.ProgrammingError)
