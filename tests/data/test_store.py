"""The cache on disk: whole or absent, bounded, shared; whoever dies, whenever."""

import errno
import os
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from fedgpt2.config import Data
from fedgpt2.data import Corpus, Pool
from fedgpt2.data import store as store_module
from fedgpt2.data import tokens as tokens_module
from fedgpt2.data.store import Store
from fedgpt2.data.tokens import TokenCache, Tokens, identity
from fedgpt2.errors import CorpusError, Reason, Refused

from .test_text_source import write_corpus
from .test_tokens import CountingSource

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "cache"), 1.0)


def bounded(folder: Path, capacity: int) -> Store:
    """A cache of so many bytes."""
    return Store.open(str(folder), capacity / 1e9)


def files(store: Store) -> list[str]:
    """Names in the cache, without digests and locks."""
    found = (path for path in store.folder.rglob("*") if path.is_file() and "locks" not in path.parts)
    return sorted(path.name for path in found if path.suffix != ".b3")


def test_what_is_put_is_got(store: Store):
    assert store.get("pages/x", "a") is None
    assert store.put("pages/x", "a", b"bytes")
    assert store.get("pages/x", "a") == b"bytes"
    assert store.names("pages/x") == ["a"]
    assert Store(store.folder, store.capacity).get("pages/x", "a") == b"bytes"
    assert files(store) == ["a"]
    store.remove("pages/x", "a")
    assert (store.get("pages/x", "a"), files(store), store.names("nothing")) == (None, [], [])


@pytest.mark.parametrize("damage", [b"byteS", b"byte", b"", b"bytes and more"])
def test_bytes_that_are_not_those_written_are_never_used(store: Store, damage: bytes):
    store.put("k", "a", b"bytes")
    (store.folder / "k" / "a").write_bytes(damage)
    assert store.get("k", "a") is None
    assert files(store) == []
    store.put("k", "a", b"bytes")
    assert store.get("k", "a") == b"bytes"


@pytest.mark.parametrize("damage", [b"", b"x" * 70, None])
def test_nor_are_bytes_without_their_digest(store: Store, damage: bytes | None):
    store.put("k", "a", b"bytes")
    digest = store.folder / "k" / "a.b3"
    digest.unlink() if damage is None else digest.write_bytes(damage)
    assert store.get("k", "a") is None


def test_the_least_recently_used_go_first(tmp_path: Path):
    store, folder = bounded(tmp_path, 1000), tmp_path / "text"
    for number in range(9):
        store.put("k", str(number), bytes(100))
        os.utime(folder / "k" / str(number), (number, number))
    assert store.get("k", "0") is not None  # used just now
    store.put("k", "9", bytes(200))
    store.trim()
    assert store.names("k") == ["0", "3", "4", "5", "6", "7", "8", "9"]
    assert sum((store.folder / "k" / name).stat().st_size for name in store.names("k")) == 900


def test_size_is_kept_in_bounds_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    store = bounded(tmp_path, 20_000)
    for number in range(200):
        store.put("k", f"{number:03d}", bytes(500))
    size = sum((store.folder / "k" / name).stat().st_size for name in store.names("k"))
    assert 10_000 < size <= 21_000
    assert store.get("k", "199") is not None


def test_what_dead_processes_left_goes_after_an_hour(tmp_path: Path):
    store = bounded(tmp_path, 1000)
    (store.folder / "k").mkdir()
    old, new = store.folder / "k" / ".a.1.tmp", store.folder / "k" / ".a.2.tmp"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    store.trim()
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError, match=r"file.*--data\.cache names another folder"):
        Store.open(str(tmp_path / "file"), 1.0)


def test_a_full_disk_costs_only_the_cache(store: Store, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    cache = TokenCache(CountingSource(), store=store)
    assert len(cache.get(Pool.ASSIGN, 1)) > 100
    assert files(store) == []
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(CorpusError, match="I/O error"):
        cache.get(Pool.ASSIGN, 2)
    assert files(store) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_so_does_one_without_room_for_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    """No inodes are left, or the disk is only read: nothing can be made there, or removed."""
    before = Store.open(str(tmp_path), 1.0)
    kept = TokenCache(CountingSource(), store=before).get(Pool.ASSIGN, 1)
    before.put("k", "damaged", b"bytes")
    (before.folder / "k" / "damaged").write_bytes(b"byteS")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    source = CountingSource()
    cache = TokenCache(source, store=Store.open(str(tmp_path), 1.0))
    assert np.array_equal(cache.get(Pool.ASSIGN, 1), kept)
    assert len(cache.get(Pool.ASSIGN, 2)) > 100
    assert source.reads == {2: 1}
    assert before.get("k", "damaged") is None
    elsewhere = TokenCache(source, store=Store.open(str(tmp_path / "new"), 1.0))
    assert len(elsewhere.get(Pool.ASSIGN, 3)) > 100
    assert not (tmp_path / "new").exists()


def test_what_else_is_wrong_with_a_lock_is_named(store: Store):
    (store.folder / "locks" / f"k-{zlib.crc32(b'a') % 64:02d}").mkdir()
    with pytest.raises(CorpusError, match=r"locks/k-.*: cannot be used as cache"), store.turn("k", "a"):
        pass


def test_a_page_is_tokenised_once_for_all_processes_and_threads(store: Store):
    source = CountingSource()
    caches = [TokenCache(source, store=Store(store.folder, store.capacity)) for _ in range(4)]
    pages: list[bytes] = []

    def read(cache: TokenCache) -> None:
        pages.extend(cache.get(Pool.ASSIGN, page).tobytes() for page in range(20))

    threads = [threading.Thread(target=read, args=(cache,)) for cache in caches for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.reads == Counter(range(20))
    assert len(set(pages)) == 20
    assert sum(cache.fetched for cache in caches) == sum(len(page) // 2 for page in set(pages))


def read_aside(cache: TokenCache, *stop: threading.Event) -> "Future[Tokens]":
    """Page 1, read by a thread that is left behind if it never ends."""
    future: Future[Tokens] = Future()

    def read() -> None:
        try:
            future.set_result(cache.get(Pool.ASSIGN, 1, *stop))
        except Refused as refusal:
            future.set_exception(refusal)

    threading.Thread(target=read, daemon=True).start()
    return future


def test_who_holds_a_page_for_ever_holds_up_nobody(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "_LONGEST_TURN", 0.2)
    source = CountingSource()
    cache = TokenCache(source, store=store)
    with store.turn("pages", f"{cache.kind}/assign-00000001.u16"):  # as a process does that was stopped
        tokens = read_aside(cache).result(10)
    assert np.array_equal(TokenCache(source, store=store).get(Pool.ASSIGN, 1), tokens)  # kept all the same
    assert source.reads == {1: 1}


def test_who_was_told_to_stop_waits_for_no_page(store: Store):
    source, stop = CountingSource(), threading.Event()
    cache = TokenCache(source, store=store)
    with store.turn("pages", f"{cache.kind}/assign-00000001.u16"):
        reading = read_aside(cache, stop)
        with pytest.raises(TimeoutError):
            reading.result(0.1)
        stop.set()
        with pytest.raises(Refused) as refusal:
            reading.result(10)
    assert refusal.value.reason is Reason.CANCELLED
    assert not source.reads


def test_tokens_from_disk_are_the_same_and_read_only(store: Store):
    source = CountingSource()
    first = TokenCache(source, store=store).get(Pool.SCORE, 3)
    cache = TokenCache(source, store=store)
    again = cache.get(Pool.SCORE, 3)
    assert np.array_equal(first, again)
    assert (again.dtype, again.flags.writeable, cache.fetched) == (np.uint16, False, 0)
    assert TokenCache(source, store=store).length(Pool.SCORE, 3) == len(first)


def test_another_text_has_other_pages(store: Store, monkeypatch: pytest.MonkeyPatch):
    one, other = CountingSource(), CountingSource()
    monkeypatch.setattr(other, "page_documents", 2, raising=False)
    assert identity(one) != identity(other)
    TokenCache(one, store=store).get(Pool.ASSIGN, 1)
    TokenCache(other, store=store).get(Pool.ASSIGN, 1)
    assert (one.reads, other.reads) == ({1: 1}, {1: 1})


def test_another_scheme_has_other_pages(store: Store, monkeypatch: pytest.MonkeyPatch):
    source = CountingSource()
    TokenCache(source, store=store).get(Pool.ASSIGN, 1)
    TokenCache(source, store=store).get(Pool.ASSIGN, 1)
    assert source.reads == {1: 1}
    monkeypatch.setattr(tokens_module, "SCHEME", tokens_module.SCHEME + 1)
    TokenCache(source, store=store).get(Pool.ASSIGN, 1)
    assert source.reads == {1: 2}


def test_text_files_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_corpus(tmp_path)
    config = Data(source=f"text:{tmp_path}/*/*.txt", cache=str(tmp_path / "cache"), max_slots=4, max_pages=2)
    corpus = Corpus.open(config, seq_len=16, seed=1)
    windows = corpus.windows(corpus.assign(3, 2, 5))
    monkeypatch.setattr(tokens_module, "pack", None)
    again = Corpus.open(config, seq_len=16, seed=1)
    assert np.array_equal(again.windows(again.assign(3, 2, 5)), windows)
    (tmp_path / "a" / "0.txt").write_text("Other text entirely. " * 40_000)
    changed = Corpus.open(config, seq_len=16, seed=1)
    with pytest.raises(TypeError):  # it would have to be tokenised
        changed.assign(3, 2, 5)


def test_whenever_a_process_dies_the_next_finds_all_or_nothing(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, str(HERE / "killed_writer.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) > 12  # opened, written, flushed, renamed: twice, and the folder
    assert all(line == "none 0" for line in lines[:10])
    assert lines[-1] == "right 0"
    assert set(lines) == {"none 0", "right 0"}
