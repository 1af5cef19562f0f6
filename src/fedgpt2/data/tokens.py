"""Pages as packed tokens, and tokens as training windows."""

import json
from collections import OrderedDict
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event, Lock

import blake3
import numpy as np
from numpy.typing import NDArray

from fedgpt2.data.manifest import SCHEME
from fedgpt2.data.pages import PageSource, Pool
from fedgpt2.data.store import Store
from fedgpt2.data.tokenizer import EOT, VOCAB_SHA256, load

__all__ = ["TokenCache", "Tokens", "identity", "pack", "page_windows", "window_count"]

Tokens = NDArray[np.uint16]


def pack(documents: Sequence[str]) -> Tokens:
    """Token stream of a page, uint16 [t]: each document in order, the end-of-text token before it."""
    encode = load().encode_ordinary
    stream: list[int] = []
    for document in documents:
        stream.append(EOT)
        stream += encode(document)
    return np.array(stream, dtype=np.uint16)


def window_count(tokens: Sized, seq_len: int) -> int:
    """Windows a page has: a window's last token is the next one's first, the tail is dropped."""
    return max(len(tokens) - 1, 0) // seq_len


def page_windows(tokens: Tokens, seq_len: int) -> Tokens:
    """Windows of a page, uint16 [n, seq_len + 1] at stride seq_len; a read-only view."""
    if window_count(tokens, seq_len) == 0:
        return np.empty((0, seq_len + 1), dtype=np.uint16)
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]


@dataclass
class TokenCache:
    """Tokenised pages of a source, the most recently used ones kept in memory, up to `capacity` bytes.

    With a `store` they are also kept on disk, under the name of the text (`identity`), for every process that reads
    the same text; a page is then fetched by one thread of one process while the others wait for it, within reason.
    Without, two threads that miss the same page both tokenise it.
    """

    source: PageSource
    capacity: int = 64 << 20
    store: Store | None = None
    fetched: int = 0  # tokens made from the source, not found in memory or on disk
    _lengths: dict[tuple[Pool, int], int] = field(default_factory=dict, repr=False)
    _pages: OrderedDict[tuple[Pool, int], Tokens] = field(default_factory=OrderedDict, repr=False)
    _bytes: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def get(self, pool: Pool, page: int, stop: Event | None = None) -> Tokens:
        """Token stream of a page, read-only uint16 [t].

        Raises CorpusError if it cannot be read, Refused(cancelled) where others fetch it and `stop` is set.
        """
        with self._lock:
            kept = self._pages.get((pool, page))
            if kept is not None:
                self._pages.move_to_end((pool, page))
                return kept
        tokens = self._make(pool, page) if self.store is None else self._stored(self.store, pool, page, stop)
        tokens.flags.writeable = False
        self._keep((pool, page), tokens)
        return tokens

    def length(self, pool: Pool, page: int, stop: Event | None = None) -> int:
        """Tokens of a page; once a page was read its length is remembered. Raises as `get` does."""
        known = self._lengths.get((pool, page))
        return len(self.get(pool, page, stop)) if known is None else known

    @cached_property
    def kind(self) -> str:
        """Where the store keeps the pages of this text."""
        return f"pages/{identity(self.source)[:32]}"

    def _make(self, pool: Pool, page: int) -> Tokens:
        tokens = pack(self.source.documents(pool, page))
        with self._lock:
            self.fetched += len(tokens)
        return tokens

    def _stored(self, store: Store, pool: Pool, page: int, stop: Event | None) -> Tokens:
        name = _page_name(pool, page)
        raw = store.get(self.kind, name)
        if raw is None:
            with store.turn("pages", f"{self.kind}/{name}", stop):
                raw = store.get(self.kind, name)  # another one may have fetched it meanwhile
                if raw is None:
                    raw = self._make(pool, page).astype("<u2").tobytes()
                    store.put(self.kind, name, raw)
        return np.frombuffer(raw, dtype="<u2").astype(np.uint16)

    def _keep(self, key: tuple[Pool, int], tokens: Tokens) -> None:
        with self._lock:
            previous = self._pages.pop(key, None)
            self._bytes += tokens.nbytes - (0 if previous is None else previous.nbytes)
            self._pages[key] = tokens
            self._lengths[key] = len(tokens)
            while self._bytes > self.capacity and len(self._pages) > 1:
                self._bytes -= self._pages.popitem(last=False)[1].nbytes


def identity(source: PageSource) -> str:
    """What decides the tokens of a source's pages, as a BLAKE3: its kind, files, pages, tokeniser and scheme."""
    pools = {pool.value: pages for pool, pages in source.pools.items()}
    facts = [source.name, source.files(), source.page_documents, pools, VOCAB_SHA256, SCHEME]
    return blake3.blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _page_name(pool: Pool, page: int) -> str:
    return f"{pool.value}-{page:08d}.u16"
