"""The miner's durable record: the newest order accepted of each run, and its receipts.

DIR/journal.sqlite     one row a (validator, run_id), written before an order is answered; which receipts arrived
DIR/receipts.jsonl     signed receipts as they arrived, one a line; past its cap the file becomes receipts.1.jsonl
"""

import errno
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgpt2.errors import DiskFullError, FedGPT2Error, ProtocolError, Reason, Refused, RunDirectoryError
from fedgpt2.miner.orders import Taken
from fedgpt2.protocol.messages import Envelope, Order, decode, encode
from fedgpt2.storage.files import append_line, fsync_folder
from fedgpt2.types import WorkId

__all__ = ["OrderJournal"]

RECEIPTS_BYTES = 16 << 20
_RUNS_KEPT = 10_000
_RECEIPTS_KNOWN = 10_000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_FILES = (errno.EMFILE, errno.ENFILE)  # temporary: connections come and go

_SCHEMA = """
CREATE TABLE IF NOT EXISTS taken (
    validator TEXT NOT NULL,
    run_id    TEXT NOT NULL,
    attempt   INTEGER NOT NULL,
    round     INTEGER NOT NULL,
    work_id   TEXT NOT NULL,
    PRIMARY KEY (validator, run_id)
);
CREATE TABLE IF NOT EXISTS receipted (
    signer  TEXT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (signer, payload)
)
"""


class OrderJournal:
    """The folder of one hotkey. Its methods wait for the disk: call them off the event loop; one runs at a time."""

    def __init__(self, directory: Path, *, receipts_bytes: int = RECEIPTS_BYTES) -> None:
        """Open or create it. Raises RunDirectoryError or DiskFullError, one line each."""
        self._directory = directory
        self._receipts = directory / "receipts.jsonl"
        self._receipts_bytes = receipts_bytes
        self._lock = threading.Lock()
        with self._exclusive():
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / "journal.sqlite"
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            self._repair()

    def newest(self, order: Order) -> Taken | None:
        """The newest order accepted of this order's run, or None."""
        with self._exclusive():
            row = self._database.execute(
                "SELECT attempt, round, work_id FROM taken WHERE validator = ? AND run_id = ?",
                (order.sender, order.run_id),
            ).fetchone()
        return None if row is None else Taken((row[0], row[1]), WorkId(row[2]))

    def record(self, order: Order, work_id: WorkId) -> None:
        """Make this order the newest of its run; on disk when this returns."""
        with self._exclusive():
            self._database.execute(
                "INSERT OR REPLACE INTO taken (validator, run_id, attempt, round, work_id) VALUES (?, ?, ?, ?, ?)",
                (order.sender, order.run_id, order.attempt, order.round, work_id),
            )
            self._database.execute(
                "DELETE FROM taken WHERE rowid <= (SELECT rowid FROM taken ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
                (_RUNS_KEPT,),
            )

    def keep_receipt(self, envelope: Envelope) -> bool:
        """Append a receipt; False if it is stored already. The oldest are dropped when both files are full."""
        line = encode(envelope) + b"\n"
        with self._exclusive():
            if self._known(envelope):
                return False
            if self._receipts.exists() and self._receipts.stat().st_size + len(line) > self._receipts_bytes:
                self._receipts.replace(self._directory / "receipts.1.jsonl")
            new = not self._receipts.exists()
            append_line(self._receipts, line, 0o600)
            if new:
                fsync_folder(self._directory)
            self._note(envelope)
        return True

    def _known(self, envelope: Envelope) -> bool:
        found = self._database.execute("SELECT 1 FROM receipted WHERE signer = ? AND payload = ?", _key(envelope))
        return found.fetchone() is not None

    def _note(self, envelope: Envelope) -> None:
        self._database.execute("INSERT OR IGNORE INTO receipted VALUES (?, ?)", _key(envelope))
        self._database.execute(
            "DELETE FROM receipted WHERE rowid <= (SELECT MAX(rowid) FROM receipted) - ?", (_RECEIPTS_KNOWN,)
        )

    def _repair(self) -> None:
        """Complete or cut off a partial last line, and note the last whole one, after a kill or a full disk."""
        if not self._receipts.is_file():
            return
        text = self._receipts.read_bytes()
        whole, half = text[: text.rfind(b"\n") + 1], text[text.rfind(b"\n") + 1 :]
        if half and _read(half) is not None:
            whole, half = text + b"\n", b""
            append_line(self._receipts, b"\n", 0o600)
        if half:
            os.truncate(self._receipts, len(whole))
        if (last := _read(whole.rstrip(b"\n").rpartition(b"\n")[2])) is not None:
            self._note(last)

    def close(self) -> None:
        """Close the database."""
        with self._exclusive():
            self._database.close()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thread at a time; each failure of the disk becomes one line."""
        with self._lock:
            try:
                yield
            except (OSError, sqlite3.Error) as error:
                raise self._failure(error) from error

    def _failure(self, error: OSError | sqlite3.Error) -> FedGPT2Error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or (
            isinstance(error, OSError) and error.errno in _NO_SPACE
        )
        if full:
            return DiskFullError(f"{self._directory}: no space left; what was written before is intact")
        if isinstance(error, OSError) and error.errno in _NO_FILES:
            return Refused(Reason.BUSY, "too many open files; try again")
        return RunDirectoryError(f"{self._directory}: cannot be used as --run.dir ({error})")


def _read(line: bytes) -> Envelope | None:
    """The receipt in a line of receipts.jsonl; None if the line is partial or no receipt."""
    try:
        return decode(line, Envelope)
    except ProtocolError:
        return None


def _key(envelope: Envelope) -> tuple[str, str]:
    """Key that is the same for a receipt sent again with a new signature, and differs for another receipt."""
    return envelope.signer, hashlib.sha256(envelope.payload.encode()).hexdigest()
