"""The ledger: an append-only SQLite file whose transactions are the only commit point of a run.

Entries form a hash chain: head_n = SHA-256(head_{n-1} ‖ body_n), head_0 = SHA-256(run_id). An entry is a committed
round (its body is the RoundRecord's JSON), a checkpoint written after one, or a resume that takes back the rounds after
the last checkpoint. Nothing is ever rewritten, so a head quoted in a receipt stays checkable. Two tables beside the
entries are derived or transient: `ratings` (a copy of the ranking after the last round, for quick display) and
`outbox` (receipts that were not delivered yet).

Every method is one transaction, blocks on the disk, and may be called from any thread: call it through `off_loop`.
"""

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedgpt2.errors import DiskFullError, ProtocolError, RunDirectoryError
from fedgpt2.ledger.database import create_tables, snapshot, writable
from fedgpt2.ledger.receipts import receipts_of
from fedgpt2.protocol.messages import Receipt, decode, encode
from fedgpt2.protocol.round_record import RoundRecord, decode_record, encode_record
from fedgpt2.types import Digest, Hotkey, WorkId

__all__ = ["FORMAT", "Admission", "Ledger"]

FORMAT = "2"  # of the entries' bodies: one more with each change after which older records cannot be read


@dataclass(frozen=True)
class Admission:
    """One admitted contribution, written before the step that uses it."""

    hotkey: Hotkey
    work_id: WorkId
    digest: Digest
    tokens: int


class Ledger:
    """The record of one run."""

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        """Open or create the file; with `reading`, open a snapshot that later writes do not change.

        Raises RunDirectoryError for a file that is no ledger, and, unless `reading`, for one of another format.
        """
        self._path = path
        self._lock = threading.RLock()
        with self._errors():
            self._db = snapshot(path) if reading else writable(path)
        if not reading:
            self._prepare()

    def reader(self) -> "Ledger":
        """The same file, opened once more and only to read: for a thread that may outlive this object."""
        return Ledger(self._path, reading=True)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _prepare(self) -> None:
        """Refuse a ledger of another format, which stays as it is; else create the tables that are missing."""
        made = self._rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'")
        if made and self.meta("run_id") is not None:
            self._check_format()
        with self._errors():
            create_tables(self._db)

    @property
    def format(self) -> str:
        """Format of the entries' bodies; only records of FORMAT can be read."""
        return self.meta("format") or "1"

    def _check_format(self) -> None:
        if self.format != FORMAT:
            raise RunDirectoryError(
                f"{self._path} has format {self.format}, not {FORMAT}: this version cannot continue it, choose another "
                "--run.dir (`fedgpt2 export` and `fedgpt2 sample` still read its checkpoints)"
            )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            if "disk is full" in str(error):
                raise DiskFullError(f"no space left to write {self._path}; the last round is safe") from error
            raise RunDirectoryError(f"{self._path}: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _walk(self, sql: str, *values: object) -> Iterator[sqlite3.Cursor]:
        """A cursor over the rows; only one row is in memory."""
        with self._errors(), contextlib.closing(self._db.execute(sql, values)) as rows:
            yield rows

    def _rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._walk(sql, *values) as rows:
            return rows.fetchall()

    # --- the run ---

    def create(self, run_id: str) -> None:
        """Name a new run; a ledger that has a name keeps it."""
        if self.meta("run_id") is None:
            self.set_meta({"run_id": run_id, "format": FORMAT})

    def meta(self, key: str) -> str | None:
        """A fact of the run, or None."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else None

    def set_meta(self, facts: Mapping[str, str]) -> None:
        """Write facts, replacing older ones."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", facts.items())

    # --- membership ---

    def lease_slots(self, hotkeys: Sequence[Hotkey], number: int, max_slots: int, lease: int) -> dict[Hotkey, int]:
        """Slots for round `number`, in the order of `hotkeys`; a miner for which none is free is left out.

        A miner keeps its slot while it uses it. A slot that was not used for `lease` rounds is free again; never used
        ones go first, then the one that has been unused longest.
        """
        with self._transaction() as db:
            held = {Hotkey(h): (slot, used) for slot, h, used in db.execute("SELECT slot, hotkey, used FROM slots")}
            given = {hotkey: held[hotkey][0] for hotkey in hotkeys if hotkey in held and held[hotkey][0] < max_slots}
            free = _free_slots(held, given.values(), number, max_slots, lease)
            for hotkey in hotkeys:
                if hotkey not in given and (slot := next(free, None)) is not None:
                    given[hotkey] = slot
            db.executemany("DELETE FROM slots WHERE slot = ?", [(slot,) for slot in given.values()])
            db.executemany("INSERT OR REPLACE INTO slots VALUES (?, ?, ?)", [(s, h, number) for h, s in given.items()])
        return {hotkey: given[hotkey] for hotkey in hotkeys if hotkey in given}

    def has_slot(
        self, hotkey: Hotkey, number: int, max_slots: int, lease: int, connected: Collection[Hotkey] = ()
    ) -> bool:
        """Whether the miner has a slot, or one is free in round `number` after all who are `connected` have theirs."""
        rows = self._rows("SELECT slot, hotkey, used FROM slots")
        held = {Hotkey(str(h)): (int(str(slot)), int(str(used))) for slot, h, used in rows}
        if hotkey in held and held[hotkey][0] < max_slots:
            return True
        kept = [held[h][0] for h in connected if h in held]
        waiting = sum(h not in held for h in connected)
        return len(list(_free_slots(held, kept, number, max_slots, lease))) > waiting

    # --- axons ---

    def axon_keys(self) -> dict[str, Hotkey]:
        """The hotkey that each axon showed first."""
        return {str(a): Hotkey(str(k)) for a, k in self._rows("SELECT address, hotkey FROM axons")}

    def record_axon(self, address: str, hotkey: Hotkey) -> None:
        """Record the hotkey of an axon."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO axons VALUES (?, ?)", (address, hotkey))

    # --- committing ---

    @property
    def head(self) -> Digest:
        """Head of the hash chain."""
        rows = self._rows("SELECT head FROM entries ORDER BY seq DESC LIMIT 1")
        if rows:
            return Digest(str(rows[0][0]))
        return Digest(hashlib.sha256((self.meta("run_id") or "").encode()).hexdigest())

    def admit(self, number: int, attempt: int, admissions: Sequence[Admission]) -> None:
        """Commit the admitted set of a round before its step; it stays until the round is committed or taken back.

        A validator that ends in between asks again; the new set replaces this one.
        """
        with self._transaction() as db:
            db.execute("DELETE FROM admissions WHERE round = ? AND attempt = ?", (number, attempt))
            db.executemany(
                "INSERT INTO admissions VALUES (?, ?, ?, ?, ?, ?)",
                [(number, attempt, a.hotkey, a.work_id, a.digest, a.tokens) for a in admissions],
            )

    def commit_round(
        self,
        record: RoundRecord,
        *,
        sender: Hotkey,
        checkpoint: str | None = None,
        ratings: Mapping[Hotkey, bytes] | None = None,
        delivered: Collection[WorkId] = (),
    ) -> list[Receipt]:
        """Commit a round with its receipts, which are returned; `sender` is the validator's hotkey.

        `ratings`: each miner's line of the ranking, as JSON. `delivered`: work whose receipts have arrived. Raises
        RunDirectoryError unless the round is the next one.
        """
        if record.round != self.last_round() + 1:
            raise RunDirectoryError(f"{self._path}: round {record.round} after round {self.last_round()}")
        body = encode_record(record).decode()
        with self._transaction() as db:
            seq, head = self._append(db, "round", record.round, record.attempt, checkpoint, body)
            db.execute("DELETE FROM admissions")
            db.execute("DELETE FROM ratings")
            lines = [(hotkey, record.round, line.decode()) for hotkey, line in (ratings or {}).items()]
            db.executemany("INSERT INTO ratings VALUES (?, ?, ?)", lines)
            receipts = receipts_of(record, self.meta("run_id") or "", sender, head)
            waiting = [(receipt.work_id, seq, encode(receipt).decode()) for receipt in receipts]
            _forget(db, delivered)
            db.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?, ?)", waiting)
        return receipts

    def commit_checkpoint(self, number: int, attempt: int, checkpoint: str) -> None:
        """Name a checkpoint of the last round that was written after the round was committed."""
        body = json.dumps({"checkpoint": checkpoint, "round": number}, separators=(",", ":"))
        with self._transaction() as db:
            self._append(db, "checkpoint", number, attempt, checkpoint, body)

    def commit_resume(self, number: int, attempt: int) -> None:
        """Take back every round after `number`; later rounds run as `attempt`."""
        body = json.dumps({"resumed_after": number, "attempt": attempt}, separators=(",", ":"))
        with self._transaction() as db:
            self._append(db, "resume", number, attempt, None, body)
            db.execute("DELETE FROM admissions")
            db.execute("DELETE FROM ratings")

    def _append(
        self, db: sqlite3.Connection, kind: str, number: int, attempt: int, checkpoint: str | None, body: str
    ) -> tuple[int, Digest]:
        """Add an entry; its number and the new head."""
        head = Digest(hashlib.sha256(self.head.encode() + body.encode()).hexdigest())
        cursor = db.execute(
            "INSERT INTO entries (kind, round, attempt, checkpoint, body, head) VALUES (?, ?, ?, ?, ?, ?)",
            (kind, number, attempt, checkpoint, body, head),
        )
        return cursor.lastrowid or 0, head

    # --- receipts ---

    def waiting_receipts(self) -> list[Receipt]:
        """Receipts that were not delivered, oldest first; without those that this version cannot read."""
        return [receipt for receipt in self._waiting() if receipt is not None]

    def unreadable_receipts(self) -> int:
        """How many waiting receipts this version cannot read; they stay for one that can."""
        return sum(receipt is None for receipt in self._waiting())

    def _waiting(self) -> Iterator[Receipt | None]:
        for (text,) in self._rows("SELECT receipt FROM outbox ORDER BY seq, work_id"):
            try:
                yield decode(str(text), Receipt)
            except ProtocolError:
                yield None

    def settle(self, delivered: Collection[WorkId]) -> None:
        """Remove receipts that have arrived; the next commit would."""
        if delivered:
            with self._transaction() as db:
                _forget(db, delivered)

    # --- reading ---

    def ratings(self) -> dict[Hotkey, str] | None:
        """Each miner's line of the ranking after the last round, as JSON; None where it was not stored."""
        rows = self._rows("SELECT hotkey, round, body FROM ratings ORDER BY hotkey")
        if not rows or any(number != self.last_round() for _, number, _ in rows):
            return None
        return {Hotkey(str(hotkey)): str(body) for hotkey, _, body in rows}

    def records(self) -> Iterator[RoundRecord]:
        """The records of the standing rounds, in order, one in memory at a time.

        Raises RunDirectoryError for a record that is damaged or of another round, and for a ledger of another format.
        """
        self._check_format()
        for number, body in enumerate(self.lines(), 1):
            try:
                record = decode_record(body)
            except (msgspec.DecodeError, UnicodeError) as error:
                raise RunDirectoryError(f"{self._path}: the record of round {number} is damaged: {error}") from error
            if record.round != number:
                raise RunDirectoryError(f"{self._path}: the record of round {number} is of round {record.round}")
            yield record

    def lines(self) -> Iterator[str]:
        """Bodies of the standing rounds (those that no later resume took back), in order, one in memory at a time."""
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
        """Digest of the broadcast weights after a standing round; reads every format.

        Raises RunDirectoryError for a round that does not stand.
        """
        rows = self._rows(
            "SELECT body FROM entries WHERE kind = 'round' AND round = ? AND ? <= "
            "(SELECT round FROM entries ORDER BY seq DESC LIMIT 1) ORDER BY seq DESC LIMIT 1",
            number,
            number,
        )
        try:
            return msgspec.json.decode(str(rows[0][0]), type=_ModelOnly).model
        except (IndexError, msgspec.DecodeError) as error:
            raise RunDirectoryError(f"{self._path}: round {number} is damaged, or does not stand") from error

    def last_round(self) -> int:
        """Number of the last standing round; 0 before the first."""
        rows = self._rows("SELECT round FROM entries ORDER BY seq DESC LIMIT 1")
        return int(str(rows[0][0])) if rows else 0

    def attempt(self) -> int:
        """Attempt under which the next round runs."""
        rows = self._rows("SELECT attempt FROM entries ORDER BY seq DESC LIMIT 1")
        return int(str(rows[0][0])) if rows else 0

    def checkpoints(self, most: int | None = None) -> list[tuple[int, str]]:
        """Standing rounds that have a checkpoint, newest first, with its name; at most `most`.

        It reads from the end: its cost does not grow with the length of the run.
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

    # --- checking ---

    def broken_entry(self) -> int | None:
        """Number of the first entry that does not follow from the chain, or None.

        An entry's kind and round are not part of the hash: they must agree with its body.
        """
        head = hashlib.sha256((self.meta("run_id") or "").encode()).hexdigest()
        with self._walk("SELECT seq, kind, round, body, head FROM entries ORDER BY seq") as rows:
            for place, (seq, kind, number, body, stored) in enumerate(rows, 1):
                head = hashlib.sha256(head.encode() + str(body).encode()).hexdigest()
                if head != stored or seq != place or not _agrees(str(body), str(kind), int(str(number))):
                    return int(str(seq))
        return None

    def entry(self, seq: int) -> tuple[str, int]:
        """Kind and round of an entry. Raises RunDirectoryError if there is none."""
        rows = self._rows("SELECT kind, round FROM entries WHERE seq = ?", seq)
        if not rows:
            raise RunDirectoryError(f"{self._path} has no entry {seq}")
        return str(rows[0][0]), int(str(rows[0][1]))

    def holds_head(self, head: str) -> bool:
        """Whether `head` is one of the chain's."""
        return bool(self._rows("SELECT 1 FROM entries WHERE head = ?", head))


def _free_slots(
    held: Mapping[Hotkey, tuple[int, int]], kept: Collection[int], number: int, max_slots: int, lease: int
) -> Iterator[int]:
    """Slots to give in round `number`: never used ones in order, then lapsed ones, longest unused first."""
    used = {slot: last for slot, last in held.values()}
    yield from (slot for slot in range(max_slots) if slot not in used)
    lapsed = [(last, slot) for slot, last in used.items() if slot < max_slots and slot not in kept]
    yield from (slot for last, slot in sorted(lapsed) if last < number - lease)


def _forget(db: sqlite3.Connection, work: Collection[WorkId]) -> None:
    db.executemany("DELETE FROM outbox WHERE work_id = ?", [(work_id,) for work_id in work])


class _ModelOnly(msgspec.Struct, frozen=True):
    """The one field of a round's body that every format has."""

    model: Digest


class _EntryBody(msgspec.Struct, frozen=True):
    """The fields that tell the kinds of entry apart."""

    round: int | None = None
    resumed_after: int | None = None
    checkpoint: str | None = None


def _agrees(body: str, kind: str, number: int) -> bool:
    try:
        told = msgspec.json.decode(body, type=_EntryBody)
    except msgspec.DecodeError:
        return False
    if told.resumed_after is not None:
        return (kind, number) == ("resume", told.resumed_after)
    named = "checkpoint" if told.checkpoint is not None else "round"
    return kind == named and number == (number if told.round is None else told.round)
