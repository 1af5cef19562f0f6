"""The ledger's tables, and how its file is opened: to write, or to read as it is now."""

import contextlib
import sqlite3
from pathlib import Path

from fedgpt2.errors import RunDirectoryError

__all__ = ["snapshot", "writable"]

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS miners (hotkey TEXT PRIMARY KEY, slot INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
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
    """A connection to the file, its tables made where they are not there yet."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.executescript(_TABLES)
    return db


def snapshot(path: Path) -> sqlite3.Connection:
    """A connection to what the file holds now.

    Even to read, SQLite wants to write an index beside a file with a WAL. Where it cannot nobody else can, so the file
    is whole without it, unless a WAL was left there that is not in the file yet.
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
        db.execute("SELECT 1 FROM sqlite_master").fetchone()  # what is read first fixes what is read later
        failing.pop_all()
    return db
