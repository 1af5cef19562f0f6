"""A source and its manifest together: every token that a miner or a validator asks for."""

from collections.abc import Iterable
from functools import cached_property

from fedgpt2.config import Data
from fedgpt2.data.assignment import Assignment, assign, gather_windows, verify
from fedgpt2.data.manifest import Manifest, build, check
from fedgpt2.data.pages import PageSource, Pool
from fedgpt2.data.pools import Pick, gather_picks, report_windows, score_windows
from fedgpt2.data.sources import open_source
from fedgpt2.data.tokens import TokenCache, Tokens
from fedgpt2.data.unigram import Unigram, fit_unigram
from fedgpt2.types import Digest

__all__ = ["Corpus"]


class Corpus:
    """The text of a run. Safe to use from several threads; pages are tokenised once and kept."""

    def __init__(self, source: PageSource, manifest: Manifest) -> None:
        """Raises Refused(WRONG_MANIFEST) unless the manifest describes the source."""
        check(manifest, source)
        self.manifest = manifest
        self._cache = TokenCache(source)

    @classmethod
    def open(cls, config: Data, seq_len: int, seed: int) -> "Corpus":
        """Open `--data.source` and write its manifest; `--data.seq_len`, where set, replaces `seq_len`.

        Raises UsageError for an unknown source, CorpusError for one that cannot be read or is too small.
        """
        source = open_source(config)
        return cls(source, build(source, config, config.seq_len or seq_len, seed))

    def tokens(self, pool: Pool, page: int) -> Tokens:
        """Token stream of a page, read-only uint16 [t]. Raises CorpusError if it cannot be read."""
        return self._cache.get(pool, page)

    def assign(self, round: int, slot: int, n: int) -> Assignment:
        """Up to `n` windows of a slot in a round; see `fedgpt2.data.assignment.assign`."""
        return assign(self.manifest, self._assign_page, round, slot, n)

    def verify(self, assignment: Assignment, round: int) -> None:
        """Raise Refused unless the scheme gives the slot exactly these windows in the round."""
        verify(self.manifest, assignment, round, self._assign_page)

    def windows(self, assignment: Assignment) -> Tokens:
        """The assigned windows, uint16 [n, seq_len + 1]. Raises Refused for one that does not exist."""
        return gather_windows(self._assign_page, assignment, self.manifest.seq_len)

    def score_picks(self, key: bytes, round: int, digests: Iterable[Digest], n: int) -> tuple[Pick, ...]:
        """Places of the `n` scoring windows of a round, as a receipt names them."""
        return score_windows(self.manifest, key, round, digests, self._score_page, n)

    def score(self, key: bytes, round: int, digests: Iterable[Digest], n: int) -> Tokens:
        """The `n` scoring windows of a round and its admitted digests, uint16 [n, seq_len + 1]."""
        picks = self.score_picks(key, round, digests, n)
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

    def _assign_page(self, page: int) -> Tokens:
        return self._cache.get(Pool.ASSIGN, page)

    def _score_page(self, page: int) -> Tokens:
        return self._cache.get(Pool.SCORE, page)

    def _report_page(self, page: int) -> Tokens:
        return self._cache.get(Pool.REPORT, page)
