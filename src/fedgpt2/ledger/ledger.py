"""The ledger: an append-only SQLite file whose transactions are the only commit point of a run.

Entries form a hash chain: head_n = SHA-256(head_{n-1} ‖ body_n), head_0 = SHA-256(run_id). An entry is a finished
round, a checkpoint written after one, or a resume that takes rounds after the last checkpoint back; nothing is ever
rewritten, so a head in a receipt stays checkable for good. The ratings beside them are only a copy, for quick looks,
of what follows from the entries; receipts lie there until they have arrived (outbox.py).
"""

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from fedgpt2.errors import DiskFullError, ProtocolError, RunDirectoryError
from fedgpt2.ledger.database import snapshot, writable
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.protocol.messages import Receipt, decode, encode
from fedgpt2.types import Digest, Hotkey

__all__ = ["Admission", "Ledger", "Receipts"]

Receipts = Callable[[Digest], Mapping[Hotkey, Receipt]]  # head of the chain -> a receipt a miner


@dataclass(frozen=True)
class Admission:
    """One contribution that counts: written before the step it goes into."""

    hotkey: Hotkey
    work_id: str
    digest: Digest
    tokens: int


class Ledger:
    """One run's record. Every method is one transaction."""

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        """Open or create; only to read, it stays as it is now, whatever a validator writes to the file meanwhile.

        Raises RunDirectoryError for a file that is no ledger.
        """
        self._path = path
        self._lock = threading.RLock()  # a transaction holds the connection, whichever thread begins it
        with self._errors():
            self._db = snapshot(path) if reading else writable(path)

    def reader(self) -> "Ledger":
        """The same, opened once more and only to read: for a thread that may outlive this one."""
        return Ledger(self._path, reading=True)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "disk is full" in str(error):
                raise DiskFullError(f"no space left to write {self._path}; the last round is safe") from error
            raise RunDirectoryError(f"{self._path}: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                if self._db.in_transaction:  # a full disk has already rolled it back
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _walk(self, sql: str, *values: object) -> Iterator[sqlite3.Cursor]:
        """The rows one at a time, as long as they are asked for."""
        with self._lock, self._errors(), contextlib.closing(self._db.execute(sql, values)) as rows:
            yield rows

    def _rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._walk(sql, *values) as rows:
            return rows.fetchall()

    # --- what the run is ---

    def meta(self, key: str) -> str | None:
        """A fact of the run, or None."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def set_meta(self, facts: Mapping[str, str]) -> None:
        """Write facts, replacing older ones."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", facts.items())

    def slot_of(self, hotkey: Hotkey, max_slots: int) -> int | None:
        """The miner's slot for the whole run, given at first sight; None when all are taken."""
        rows = self._rows("SELECT slot FROM miners WHERE hotkey = ?", hotkey)
        if rows:
            return int(str(rows[0][0]))
        with self._transaction() as db:
            (taken,) = db.execute("SELECT COUNT(*) FROM miners").fetchone()
            if taken >= max_slots:
                return None
            db.execute("INSERT INTO miners VALUES (?, ?)", (hotkey, taken))
        return int(taken)

    def has_slot(self, hotkey: Hotkey, max_slots: int, connected: Collection[Hotkey] = ()) -> bool:
        """Whether the miner has a slot, or one is left when all that are `connected` have theirs."""
        taken = {Hotkey(str(key)) for (key,) in self._rows("SELECT hotkey FROM miners")}
        return hotkey in taken or len(taken.union(connected)) < max_slots

    def axon_keys(self) -> dict[str, Hotkey]:
        """The key each axon showed first."""
        return {str(a): Hotkey(str(k)) for a, k in self._rows("SELECT address, hotkey FROM axons")}

    def record_axon(self, address: str, hotkey: Hotkey) -> None:
        """Record the key of an axon."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO axons VALUES (?, ?)", (address, hotkey))

    # --- what happened ---

    @property
    def head(self) -> Digest:
        """Head of the hash chain."""
        rows = self._rows("SELECT head FROM entries ORDER BY seq DESC LIMIT 1")
        if rows:
            return Digest(str(rows[0][0]))
        return Digest(hashlib.sha256((self.meta("run_id") or "").encode()).hexdigest())

    def admit(self, number: int, attempt: int, admissions: list[Admission]) -> None:
        """Commit the admitted set of a round, before its step: on record until the round is committed or taken back.

        A validator that ends in between asks again; what is admitted then replaces it.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM admissions WHERE round = ? AND attempt = ?", (number, attempt))
            db.executemany(
                "INSERT INTO admissions VALUES (?, ?, ?, ?, ?, ?)",
                [(number, attempt, a.hotkey, a.work_id, a.digest, a.tokens) for a in admissions],
            )

    def admitted(self, number: int, attempt: int) -> list[Admission]:
        """The admitted set of a round that was begun, by hotkey; of a committed one its row tells."""
        rows = self._rows(
            "SELECT hotkey, work_id, digest, tokens FROM admissions WHERE round = ? AND attempt = ? ORDER BY hotkey",
            number,
            attempt,
        )
        return [Admission(Hotkey(str(h)), str(w), Digest(str(d)), int(str(t))) for h, w, d, t in rows]

    def commit_round(
        self,
        number: int,
        attempt: int,
        row: Mapping[str, object],
        checkpoint: str | None,
        ratings: Mapping[Hotkey, Mapping[str, object]] | None = None,
        receipts: Receipts | None = None,
    ) -> Digest:
        """Commit a finished round, the ratings after it by hotkey, and receipts of the new head; returns the head.

        Raises RunDirectoryError unless it is the next one.
        """
        if number != self.last_round() + 1:
            raise RunDirectoryError(f"{self._path}: round {number} after round {self.last_round()}")
        return self._append("round", number, attempt, checkpoint, row, ratings or {}, receipts)

    def commit_checkpoint(self, number: int, attempt: int, checkpoint: str) -> Digest:
        """Name a checkpoint of the last round, written after the round was committed."""
        return self._append("checkpoint", number, attempt, checkpoint, {"checkpoint": checkpoint, "round": number})

    def commit_resume(self, number: int, attempt: int) -> Digest:
        """Take back every round after `number`; later rounds run as `attempt`."""
        return self._append("resume", number, attempt, None, {"resumed_after": number, "attempt": attempt})

    def _append(
        self,
        kind: str,
        number: int,
        attempt: int,
        checkpoint: str | None,
        row: Mapping[str, object],
        ratings: Mapping[Hotkey, Mapping[str, object]] | None = None,
        receipts: Receipts | None = None,
    ) -> Digest:
        body = json.dumps(row, separators=(",", ":"), allow_nan=False)
        head = Digest(hashlib.sha256(self.head.encode() + body.encode()).hexdigest())
        made = list(receipts(head).values()) if receipts else []
        gone = self.outbox.gone()
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO entries (kind, round, attempt, checkpoint, body, head) VALUES (?, ?, ?, ?, ?, ?)",
                (kind, number, attempt, checkpoint, body, head),
            )
            if kind != "checkpoint":
                db.execute("DELETE FROM admissions")  # the round they were for is this one, or taken back
            if ratings is not None:
                db.execute("DELETE FROM ratings")
                db.executemany(
                    "INSERT INTO ratings VALUES (?, ?, ?)",
                    [(key, number, json.dumps(each, allow_nan=False)) for key, each in ratings.items()],
                )
            _forget(db, gone)
            db.executemany(
                "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?)",
                [(receipt.work_id, cursor.lastrowid, encode(receipt).decode()) for receipt in made],
            )
        self.outbox.noted(gone)
        self.outbox.add(made)
        return head

    @cached_property
    def outbox(self) -> Outbox:
        """Receipts of this run that have not arrived, but for the `unread`."""
        return Outbox(receipt for receipt in self._waiting() if receipt is not None)

    def unread(self) -> int:
        """How many receipts wait that this version cannot read; they are left for one that can."""
        return sum(receipt is None for receipt in self._waiting())

    def _waiting(self) -> Iterator[Receipt | None]:
        for (text,) in self._rows("SELECT receipt FROM outbox ORDER BY seq, work_id"):
            try:
                yield decode(str(text), Receipt)
            except ProtocolError:
                yield None

    def settle(self) -> None:
        """Note the receipts that have arrived; the next commit would."""
        if gone := self.outbox.gone():
            with self._transaction() as db:
                _forget(db, gone)
            self.outbox.noted(gone)

    def ratings(self) -> dict[Hotkey, str] | None:
        """Each miner's rating after the last round that stands, as JSON; None where it was not kept."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'ratings'"):
            return None  # an old ledger, opened to read
        rows = self._rows("SELECT hotkey, round, body FROM ratings ORDER BY hotkey")
        if not rows or any(number != self.last_round() for _, number, _ in rows):
            return None
        return {Hotkey(str(hotkey)): str(body) for hotkey, _, body in rows}

    def rounds(self) -> Iterator[str]:
        """Bodies of the rounds that stand, in order: those that no later resume took back. One is held at a time."""
        standing: list[tuple[int, int]] = []  # round, and the entry that holds it
        for kind, number, seq in self._rows("SELECT kind, round, seq FROM entries ORDER BY seq"):
            if kind == "resume":
                standing = [place for place in standing if place[0] <= int(str(number))]
            elif kind == "round":
                standing.append((int(str(number)), int(str(seq))))
        for _, seq in standing:
            ((body,),) = self._rows("SELECT body FROM entries WHERE seq = ?", seq)
            yield str(body)

    def model_after(self, number: int) -> Digest:
        """Digest of the broadcast weights after a round that stands. Raises RunDirectoryError for one that does not."""
        rows = self._rows(
            "SELECT body FROM entries WHERE kind = 'round' AND round = ? AND ? <= "
            "(SELECT round FROM entries ORDER BY seq DESC LIMIT 1) ORDER BY seq DESC LIMIT 1",
            number,
            number,
        )
        try:
            return msgspec.json.decode(str(rows[0][0]), type=_Left).model
        except (IndexError, msgspec.DecodeError) as error:
            raise RunDirectoryError(f"{self._path}: round {number} is damaged, or does not stand") from error

    def last_round(self) -> int:
        """Number of the last round that stands; 0 before the first."""
        rows = self._rows("SELECT round FROM entries ORDER BY seq DESC LIMIT 1")
        return int(str(rows[0][0])) if rows else 0

    def attempt(self) -> int:
        """Attempt under which the next round runs."""
        rows = self._rows("SELECT attempt FROM entries ORDER BY seq DESC LIMIT 1")
        return int(str(rows[0][0])) if rows else 0

    def checkpoints(self, most: int | None = None) -> list[tuple[int, str]]:
        """Rounds that stand and have a checkpoint, newest first, with its name; at most so many.

        From the end on: a validator asks for the last ones after every round, however many lie behind it.
        """
        found: list[tuple[int, str]] = []
        standing = self.last_round()
        with self._walk("SELECT kind, round, checkpoint FROM entries ORDER BY seq DESC") as rows:
            for kind, number, name in rows:
                if len(found) == most:
                    break
                if kind == "resume":
                    standing = min(standing, number)
                elif name is not None and number <= standing:
                    found.append((number, name))
                    standing = number - 1
        return found

    def broken_entry(self) -> int | None:
        """Number of the first entry that does not follow from the chain, or None: an edited row shows.

        An entry's kind and round are outside of what is hashed, and must be those its body tells of.
        """
        head = hashlib.sha256((self.meta("run_id") or "").encode()).hexdigest()
        with self._walk("SELECT seq, kind, round, body, head FROM entries ORDER BY seq") as rows:
            for place, (seq, kind, number, body, stored) in enumerate(rows, 1):
                head = hashlib.sha256(head.encode() + str(body).encode()).hexdigest()
                if head != stored or seq != place or not _tells(str(body), str(kind), int(str(number))):
                    return int(str(seq))
        return None

    def entry(self, seq: int) -> tuple[str, int]:
        """Kind and round of an entry. Raises RunDirectoryError if there is none."""
        rows = self._rows("SELECT kind, round FROM entries WHERE seq = ?", seq)
        if not rows:
            raise RunDirectoryError(f"{self._path} has no entry {seq}")
        return str(rows[0][0]), int(str(rows[0][1]))

    def holds_head(self, head: str) -> bool:
        """Whether a head is one of the chain's, as that in every receipt of this run must be."""
        return bool(self._rows("SELECT 1 FROM entries WHERE head = ?", head))


def _forget(db: sqlite3.Connection, work: Collection[str]) -> None:
    db.executemany("DELETE FROM outbox WHERE work_id = ?", [(work_id,) for work_id in work])


class _Left(msgspec.Struct, frozen=True):
    """What a round's body says of the weights it left."""

    model: Digest


class _Told(msgspec.Struct, frozen=True):
    """What an entry's body says of what it is."""

    round: int | None = None
    resumed_after: int | None = None
    checkpoint: str | None = None


def _tells(body: str, kind: str, number: int) -> bool:
    try:
        told = msgspec.json.decode(body, type=_Told)
    except msgspec.DecodeError:
        return False
    if told.resumed_after is not None:
        return (kind, number) == ("resume", told.resumed_after)
    named = "checkpoint" if told.checkpoint is not None else "round"
    return kind == named and number == (number if told.round is None else told.round)
