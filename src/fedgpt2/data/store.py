"""The cache on disk: bytes under names, never half-written, never trusted without their digest.

DIR/KIND/NAME        the bytes
DIR/KIND/NAME.b3     their BLAKE3 and length, written after them
DIR/locks/KIND-NN    who fetches what, among all processes of the machine

A file is written aside, flushed to the disk and renamed, then its digest alike: whatever instant a process dies at,
a name gives its bytes or nothing. Several processes share a folder; what one removes, another fetches again.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import blake3

from fedgpt2.config import path_of
from fedgpt2.errors import CorpusError, Reason, Refused

__all__ = ["Store"]

_LOCKS = 64  # a kind; two names that share one only wait for each other
_LONGEST_TURN = 60.0  # seconds; who holds a name longer may be stopped, or told by a server to wait
_LOOK_SECONDS = 0.05  # between two looks whether a turn has come
_STALE_SECONDS = 3600.0  # after which an unfinished file is nobody's
_KEPT_SHARE = 0.9  # of the capacity, after a clean-up
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Kept(NamedTuple):
    """One file of the cache, the least recently used first when sorted."""

    used: float
    size: int
    path: Path


@dataclass
class Store:
    """A folder of at most about `capacity` bytes; the least recently used go first."""

    folder: Path
    capacity: int
    _written: int = field(default=-1, repr=False)  # bytes since the last clean-up; -1: none yet
    _lock: Lock = field(default_factory=Lock, repr=False)

    @classmethod
    def open(cls, folder: str, gigabytes: float) -> "Store":
        """Open or create it. Raises CorpusError where the folder cannot be written, unless for want of room."""
        path = path_of("--data.cache", folder) / "text"
        with _without_room(path):
            (path / "locks").mkdir(parents=True, exist_ok=True)
        return cls(path, int(gigabytes * 1e9))

    def get(self, kind: str, name: str) -> bytes | None:
        """The bytes of a name, or None; bytes that are not those written are removed."""
        path = self.folder / kind / name
        try:
            digest = path.with_name(f"{name}.b3").read_bytes()
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, error) from error
        if digest != _digest(data):
            self.remove(kind, name)
            return None
        with contextlib.suppress(OSError):  # removed meanwhile, or not ours to touch: only its age is wrong
            os.utime(path)
        return data

    def put(self, kind: str, name: str, data: bytes) -> bool:
        """Keep bytes under a name; False where the disk has no room for them. Raises CorpusError."""
        path, kept = self.folder / kind / name, False
        with _without_room(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, data)
            self._write(path.with_name(f"{name}.b3"), _digest(data))
            _flush_folder(path.parent)
            kept = True
        if kept:
            self._count(len(data))
        return kept

    def remove(self, kind: str, name: str) -> None:
        """Forget a name."""
        path = self.folder / kind / name
        with _without_room(path):
            path.with_name(f"{name}.b3").unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def names(self, kind: str) -> list[str]:
        """What is kept of a kind, in order."""
        folder = self.folder / kind
        return sorted(path.name[:-3] for path in folder.glob("*.b3")) if folder.is_dir() else []

    @contextlib.contextmanager
    def turn(self, kind: str, name: str, stop: Event | None = None) -> Iterator[None]:
        """Hold a name, among all threads and processes, while it is fetched; a dead process holds nothing.

        It spares work and guards nothing: whoever has waited for a minute goes on without it. Raises Refused(cancelled)
        soon after `stop` is set. A turn may be taken inside a turn of another kind only where all do so in the same
        order. Where there is no room for its file nothing can be kept either, and everybody fetches for itself.
        """
        number = zlib.crc32(name.encode()) % _LOCKS
        path = self.folder / "locks" / f"{kind}-{number:02d}"
        with contextlib.ExitStack() as held:
            with _without_room(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                held.callback(os.close, descriptor)
                _await_turn(descriptor, stop or Event())
            yield

    def _write(self, path: Path, data: bytes) -> None:
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise

    def _count(self, size: int) -> None:
        """Clean up at the first write, and after each twentieth of the capacity."""
        with self._lock:
            due = self._written < 0 or self._written + size > self.capacity // 20
            self._written = 0 if due else self._written + size
        if due:
            self.trim()

    def trim(self) -> None:
        """Remove the least recently used files until they fit, and what dead processes left unfinished."""
        with self.turn("trim", ""):
            kept = sorted(self._scan())
            total = sum(file.size for file in kept)
            limit = int(self.capacity * _KEPT_SHARE)
            for file in kept if total > self.capacity else ():
                if total <= limit:
                    break
                self.remove(str(file.path.parent.relative_to(self.folder)), file.path.name)
                total -= file.size

    def _scan(self) -> Iterator[_Kept]:
        now = time.time()
        for folder, _, names in os.walk(self.folder):
            if Path(folder).name == "locks":
                continue
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(FileNotFoundError):  # another process cleans up too
                    facts = path.stat()
                    if name.endswith(".tmp") and now - facts.st_mtime > _STALE_SECONDS:
                        path.unlink()
                    elif not name.endswith((".tmp", ".b3")):
                        yield _Kept(facts.st_mtime, facts.st_size, path)


def _await_turn(descriptor: int, stop: Event) -> None:
    """Lock a file, or leave it when that takes too long. Raises Refused(cancelled) soon after `stop` is set."""
    end = time.monotonic() + _LONGEST_TURN
    while not stop.is_set():
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= end:
            return
        stop.wait(_LOOK_SECONDS)
    raise Refused(Reason.CANCELLED, "the reading was called off")


def _digest(data: bytes) -> bytes:
    return f"{blake3.blake3(data).hexdigest()} {len(data)}\n".encode("ascii")


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _without_room(path: Path) -> Iterator[None]:
    """End where the disk has no room or is only read; what else is wrong with it raises CorpusError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> CorpusError:
    return CorpusError(
        f"{path}: cannot be used as cache ({error.strerror or error}); --data.cache names another folder"
    )
