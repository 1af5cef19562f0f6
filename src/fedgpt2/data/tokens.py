"""Pages as packed tokens, and tokens as training windows."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from fedgpt2.data.pages import PageSource, Pool
from fedgpt2.data.tokenizer import EOT, load

__all__ = ["TokenCache", "Tokens", "pack", "page_windows", "window_count"]

Tokens = NDArray[np.uint16]


def pack(documents: Sequence[str]) -> Tokens:
    """Token stream of a page, uint16 [t]: each document in order, the end-of-text token before it."""
    encode = load().encode_ordinary
    stream: list[int] = []
    for document in documents:
        stream.append(EOT)
        stream += encode(document)
    return np.array(stream, dtype=np.uint16)


def window_count(tokens: Tokens, seq_len: int) -> int:
    """Windows a page has: a window's last token is the next one's first, the tail is dropped."""
    return max(len(tokens) - 1, 0) // seq_len


def page_windows(tokens: Tokens, seq_len: int) -> Tokens:
    """Windows of a page, uint16 [n, seq_len + 1] at stride seq_len; a read-only view."""
    if window_count(tokens, seq_len) == 0:
        return np.empty((0, seq_len + 1), dtype=np.uint16)
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[::seq_len]


@dataclass
class TokenCache:
    """Tokenised pages of a source, the most recently used ones kept, up to `capacity` bytes.

    May be used from several threads; two that miss the same page both tokenise it.
    """

    source: PageSource
    capacity: int = 64 << 20
    _pages: OrderedDict[tuple[Pool, int], Tokens] = field(default_factory=OrderedDict, repr=False)
    _bytes: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def get(self, pool: Pool, page: int) -> Tokens:
        """Token stream of a page, read-only uint16 [t]. Raises CorpusError if it cannot be read."""
        with self._lock:
            kept = self._pages.get((pool, page))
            if kept is not None:
                self._pages.move_to_end((pool, page))
                return kept
        tokens = pack(self.source.documents(pool, page))
        tokens.flags.writeable = False
        self._keep((pool, page), tokens)
        return tokens

    def _keep(self, key: tuple[Pool, int], tokens: Tokens) -> None:
        with self._lock:
            previous = self._pages.pop(key, None)
            self._bytes += tokens.nbytes - (0 if previous is None else previous.nbytes)
            self._pages[key] = tokens
            while self._bytes > self.capacity and len(self._pages) > 1:
                self._bytes -= self._pages.popitem(last=False)[1].nbytes
