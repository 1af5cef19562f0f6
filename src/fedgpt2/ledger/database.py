"""The ledger's tables, and opening its file: to write, or to read a snapshot of it."""

import contextlib
import sqlite3
from pathlib import Path

from fedgpt2.errors import RunDirectoryError

__all__ = ["create_tables", "snapshot", "writable"]

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS slots (slot INTEGER PRIMARY KEY, hotkey TEXT NOT NULL UNIQUE, used INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS axons (address TEXT PRIMARY KEY, hotkey TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS admissions (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, hotkey TEXT NOT NULL,
    work_id TEXT NOT NULL, digest TEXT NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (round, attempt, hotkey)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('round', 'resume', 'checkpoint')),
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, checkpoint TEXT, body TEXT NOT NULL, head TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ratings (
    hotkey TEXT PRIMARY KEY, round INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    work_id TEXT PRIMARY KEY, seq INTEGER NOT NULL, receipt TEXT NOT NULL) WITHOUT ROWID;
"""


def writable(path: Path) -> sqlite3.Connection:
    """A connection to the file, which is created where it is missing."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


def create_tables(db: sqlite3.Connection) -> None:
    """Create the tables that are missing."""
    db.executescript(_TABLES)


def snapshot(path: Path) -> sqlite3.Connection:
    """A read-only connection to the present contents of the file.

    SQLite writes an index beside a file with a WAL even to read it. On a read-only disk nobody else writes either, so
    the file is complete without the index, unless a WAL holds entries that are not in the file yet.
    """
    try:
        return _reading(path, "mode=ro")
    except sqlite3.OperationalError as error:
        sealed = error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        wal = path.with_name(f"{path.name}-wal")
        if not sealed or (wal.exists() and wal.stat().st_size):
            way_out = f"; rounds wait in {wal.name}: copy the run to a folder that can be written" if sealed else ""
            raise RunDirectoryError(f"{path}: {error}{way_out}") from error
    return _reading(path, "mode=ro&immutable=1")


def _reading(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{how}"
    with contextlib.ExitStack() as failing:
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        failing.callback(db.close)
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM sqlite_master").fetchone()  # the first read fixes the snapshot
        failing.pop_all()
    return db
