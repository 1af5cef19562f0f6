"""The files behind a parquet corpus: on this machine, or in a repository of the hub. Listed once, read in ranges."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3

from fedgpt2.data.globs import matches, portable
from fedgpt2.data.hub import Hub
from fedgpt2.data.pages import SourceFile
from fedgpt2.data.store import Store
from fedgpt2.errors import CorpusError

__all__ = ["Shards", "hub_shards", "local_shards"]

_LISTED_EACH = 64  # local files up to which the manifest names every one
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Shards:
    """Files in path order, how the manifest names them, and how to read a range of one."""

    name: str  # as people know them
    entries: Sequence[SourceFile]
    manifest_files: Sequence[SourceFile]
    read: Callable[[SourceFile, int, int], bytes]  # bytes [start, stop); raises CorpusError


def hub_shards(hub: Hub, pattern: str, store: Store) -> Shards:
    """Files of a dataset repository, at one commit, that match a glob.

    The listing of a commit never changes, so it is asked for once and kept. Raises CorpusError.
    """
    hub = Hub(hub.repo, hub.commit(), hub.patience)
    name = f"{hub.name}/{pattern}"
    entries = _kept_listing(store, name)
    if entries is None:
        entries = hub.listing(pattern)
        store.put("listings", _listing_name(name), _canonical(entries))
    return Shards(name, entries, [_summary(name, entries)], hub.read)


def local_shards(pattern: str, store: Store) -> Shards:
    """Files of this machine that a glob names. Raises CorpusError.

    Their SHA-256 is computed once for each size and time of last change, and kept.
    """
    root, paths = matches(f"parquet:{pattern}", pattern)
    entries = [_local_entry(root, path, store) for path in paths]
    sizes = {entry.path: entry.size for entry in entries}

    def read(file: SourceFile, start: int, stop: int) -> bytes:
        return _read_range(root / file.path, sizes[file.path], start, stop)

    many = len(entries) > _LISTED_EACH
    name = f"parquet:{pattern}"
    summary = [_summary(Path(pattern).name, entries)] if many else entries
    return Shards(name, entries, summary, read)


def _summary(name: str, entries: Sequence[SourceFile]) -> SourceFile:
    """A whole listing as one entry: total size, and SHA-256 of the listing's canonical JSON."""
    return SourceFile(name, sum(entry.size for entry in entries), hashlib.sha256(_canonical(entries)).hexdigest())


def _canonical(entries: Sequence[SourceFile]) -> bytes:
    return json.dumps([list(entry) for entry in entries], separators=(",", ":"), ensure_ascii=False).encode()


def _listing_name(name: str) -> str:
    return f"{blake3.blake3(name.encode()).hexdigest()[:32]}.json"


def _kept_listing(store: Store, name: str) -> list[SourceFile] | None:
    kept = store.get("listings", _listing_name(name))
    return None if kept is None else [SourceFile(*entry) for entry in json.loads(kept)]


def _local_entry(root: Path, path: Path, store: Store) -> SourceFile:
    try:
        facts = path.stat()
        key = f"{path.resolve()}\n{facts.st_size}\n{facts.st_mtime_ns}\n{facts.st_ino}"
        name = blake3.blake3(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        kept = store.get("hashes", name)
        sha256 = kept.decode("ascii") if kept is not None else _sha256(path)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    if kept is None:
        store.put("hashes", name, sha256.encode("ascii"))
    return SourceFile(portable(root, path), facts.st_size, sha256)


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def _read_range(path: Path, size: int, start: int, stop: int) -> bytes:
    try:
        with path.open("rb") as file:
            now = file.seek(0, 2)
            file.seek(start)
            data = file.read(stop - start)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read any more ({error.strerror})") from error
    if now != size or len(data) != stop - start:
        raise CorpusError(f"{path}: has changed since the run began")
    return data
