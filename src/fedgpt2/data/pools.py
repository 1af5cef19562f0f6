"""The secret evaluation key, and the held-out windows it draws.

Scoring windows depend on the admitted contributions, so nobody, the validator included, can choose one to
suit the other; and on the key, so no miner can know them before it has answered. The SHA-256 of the key is
published at the start of a run and the key at its end. docs/data.md gives the exact bytes.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.tokens import Tokens, page_windows, window_count
from fedgpt2.errors import CorpusError
from fedgpt2.types import Digest

__all__ = ["Pick", "gather_picks", "key_digest", "new_key", "report_windows", "score_windows"]

_REPORT = b"report"
_TRIES = 64  # draws a window, before the pool is called too small
_ASKING = {
    Pool.SCORE: "--ranking.tokens or --run.score_windows",
    Pool.REPORT: "--run.eval_windows",
}  # who wants windows

PageTokens = Callable[[int], Tokens]


class Pick(NamedTuple):
    """One held-out window: its page in the pool and its place in the page."""

    page: int
    window: int


def new_key(draw: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """A secret evaluation key: 32 bytes from `draw`, which nobody else must be able to guess."""
    return draw(32)


def key_digest(key: bytes) -> str:
    """SHA-256 of the key, 64 lower-case hex characters: what binds the validator to it."""
    return hashlib.sha256(key).hexdigest()


def score_windows(
    manifest: Manifest, key: bytes, round: int, admitted: Iterable[Digest], loader: PageTokens, n: int
) -> tuple[Pick, ...]:
    """`n` windows of the score pool for a round and the digests of its admitted contributions.

    `loader` gives the tokens of a score page. Raises CorpusError if the pool has too few windows.
    """
    contributions = hashlib.sha256("".join(sorted(admitted)).encode("ascii")).digest()
    seed = _hmac(key, round.to_bytes(8, "big") + contributions)
    return _draw(manifest, Pool.SCORE, seed, loader, n)


def report_windows(manifest: Manifest, key: bytes, loader: PageTokens, n: int) -> tuple[Pick, ...]:
    """`n` windows of the report pool, the same for the whole run.

    `loader` gives the tokens of a report page. Raises CorpusError if the pool has too few windows.
    """
    return _draw(manifest, Pool.REPORT, _hmac(key, _REPORT), loader, n)


def gather_picks(loader: PageTokens, picks: Iterable[Pick], seq_len: int) -> Tokens:
    """The picked windows in order, uint16 [n, seq_len + 1]."""
    rows = [page_windows(loader(pick.page), seq_len)[pick.window] for pick in picks]
    return np.stack(rows) if rows else np.empty((0, seq_len + 1), dtype=np.uint16)


def _draw(manifest: Manifest, pool: Pool, seed: bytes, loader: PageTokens, n: int) -> tuple[Pick, ...]:
    """The first `n` different windows that the seed's blocks name."""
    picks: dict[Pick, None] = {}
    for i in range(_TRIES * n):
        if len(picks) == n:
            break
        block = _hmac(seed, i.to_bytes(8, "big"))
        page = int.from_bytes(block[:8], "big") % manifest.pools[pool]
        count = window_count(loader(page), manifest.seq_len)
        if count:
            picks[Pick(page, int.from_bytes(block[8:16], "big") % count)] = None
    if len(picks) < n:
        raise CorpusError(
            f"corpus too small: {len(picks)} windows of {manifest.seq_len} tokens found in the {pool} pool, not {n}; "
            f"{_ASKING[pool]} asks for so many"
        )
    return tuple(picks)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
