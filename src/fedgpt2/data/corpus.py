"""A source and its manifest together: every token that a miner or a validator asks for."""

from collections.abc import Iterable, Sized
from functools import cached_property, partial
from threading import Event

from fedgpt2.config import Data
from fedgpt2.data.assignment import Assignment, assign, gather_windows
from fedgpt2.data.manifest import Manifest, build, check
from fedgpt2.data.pages import PageSource, Pool
from fedgpt2.data.pools import Pick, gather_picks, report_windows, score_windows
from fedgpt2.data.prefetch import Prefetcher
from fedgpt2.data.sources import open_source, open_store
from fedgpt2.data.store import Store
from fedgpt2.data.tokens import TokenCache, Tokens
from fedgpt2.data.unigram import Unigram, fit_unigram
from fedgpt2.types import Digest

__all__ = ["Corpus"]

_AHEAD = 8  # a span's pages are fetched this part of a span before it begins
_HELD_OUT_AHEAD = 512  # pages of the score pool fetched before they are drawn, at most


class Corpus:
    """The text of a run. Safe to use from several threads; pages are tokenised once and kept, with a store on disk."""

    def __init__(self, source: PageSource, manifest: Manifest, store: Store | None = None) -> None:
        """Raises Refused(WRONG_MANIFEST) unless the manifest describes the source."""
        check(manifest, source)
        self.manifest = manifest
        self.source = source
        self.cache = TokenCache(source, store=store)
        self._prefetcher = Prefetcher()
        self._closed = Event()

    @classmethod
    def open(cls, config: Data, seq_len: int, seed: int) -> "Corpus":
        """Open `--data.source` and write its manifest; `--data.seq_len`, where set, replaces `seq_len`.

        Raises UsageError for an unknown source, CorpusError for one that cannot be read or is too small.
        """
        source = open_source(config)
        return cls(source, build(source, config, config.seq_len or seq_len, seed), open_store(config, source))

    def tokens(self, pool: Pool, page: int, stop: Event | None = None) -> Tokens:
        """Token stream of a page, read-only uint16 [t].

        Raises CorpusError if it cannot be read, Refused(cancelled) where others fetch it and `stop` is set.
        """
        return self.cache.get(pool, page, stop)

    def assign(self, round: int, slot: int, n: int) -> Assignment:
        """Up to `n` windows of a slot in a round; see `fedgpt2.data.assignment.assign`."""
        return assign(self.manifest, self._assign_length, round, slot, n)

    def load(self, round: int, slots: Iterable[int], n: int) -> None:
        """Begin to fetch what `assign` will read for these slots, side by side; returns at once."""
        for slot in slots if self.cache.store is not None else ():
            job = partial(assign, self.manifest, self._length_ahead, round, slot, n)
            self._prefetcher.submit(("assign", round, slot), job)

    def load_ahead(self, round: int, slots: Iterable[int], n: int) -> None:
        """Begin to fetch what the slots need after `round`: in the next round, and soon when the next span begins."""
        for later in (round + 1, round + max(1, self.manifest.span // _AHEAD)):
            self.load(later, slots, n)

    def load_held_out(self) -> None:
        """Begin to fetch the score pool, after all that is needed sooner: which page is drawn next, nobody knows."""
        pages = min(self.manifest.pools[Pool.SCORE], _HELD_OUT_AHEAD) if self.cache.store is not None else 0
        for page in range(pages):
            job = partial(self.cache.get, Pool.SCORE, page, self._closed)
            self._prefetcher.submit(("score", page), job, urgent=False)

    def wait(self, timeout: float) -> bool:
        """Wait until everything begun is fetched, or has failed; False if that takes over `timeout` seconds."""
        return self._prefetcher.wait(timeout)

    def close(self) -> None:
        """Fetch nothing more ahead; a program calls it before it ends."""
        self._closed.set()
        self._prefetcher.close()

    def windows(self, assignment: Assignment) -> Tokens:
        """The assigned windows, uint16 [n, seq_len + 1]. Raises Refused for one that does not exist."""
        return gather_windows(self._assign_page, assignment, self.manifest.seq_len)

    def score_picks(self, key: bytes, round: int, digests: Iterable[Digest], n: int) -> tuple[Pick, ...]:
        """Places of the `n` scoring windows of a round, as a receipt names them."""
        return score_windows(self.manifest, key, round, digests, self._score_page, n)

    def score(self, key: bytes, round: int, digests: Iterable[Digest], n: int) -> Tokens:
        """The `n` scoring windows of a round and its admitted digests, uint16 [n, seq_len + 1]."""
        return self.score_tokens(self.score_picks(key, round, digests, n))

    def score_tokens(self, picks: Iterable[Pick]) -> Tokens:
        """Windows of the score pool by their places, uint16 [n, seq_len + 1]."""
        return gather_picks(self._score_page, picks, self.manifest.seq_len)

    def report(self, key: bytes, n: int) -> Tokens:
        """The `n` windows val_loss is measured on for the whole run, uint16 [n, seq_len + 1]."""
        picks = report_windows(self.manifest, key, self._report_page, n)
        return gather_picks(self._report_page, picks, self.manifest.seq_len)

    def unigram(self, windows: Tokens) -> float:
        """Loss, in nats a token, of a unigram model of the assign pool on windows [n, seq_len + 1]."""
        return self._unigram.loss(windows)

    @cached_property
    def _unigram(self) -> Unigram:
        return fit_unigram(self.manifest, self._assign_page)

    def _assign_length(self, page: int) -> Sized:
        return range(self.cache.length(Pool.ASSIGN, page))

    def _length_ahead(self, page: int) -> Sized:
        return range(self.cache.length(Pool.ASSIGN, page, self._closed))

    def _assign_page(self, page: int) -> Tokens:
        return self.cache.get(Pool.ASSIGN, page)

    def _score_page(self, page: int) -> Tokens:
        return self.cache.get(Pool.SCORE, page)

    def _report_page(self, page: int) -> Tokens:
        return self.cache.get(Pool.REPORT, page)
