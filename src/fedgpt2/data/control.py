"""The control page of a round: text of the assign pool that no slot was given.

A miner that trained on its pages lowers the loss there more than on text nobody trained on; one that trained on
something else does not. The page is drawn behind the evaluation key after the admitted set is fixed, like a scoring
window, from all pages that the round's span does not deal out, so it cannot be trained on instead.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable

from fedgpt2.data.assignment import page_of
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.pools import Pick
from fedgpt2.data.tokens import Tokens, window_count
from fedgpt2.errors import CorpusError
from fedgpt2.types import Digest

__all__ = ["control_windows"]

_TRIES = 64  # pages drawn, before the pool is called too small


def control_windows(
    manifest: Manifest, key: bytes, round: int, admitted: Iterable[Digest], loader: Callable[[int], Tokens], n: int
) -> tuple[Pick, ...]:
    """Up to `n` windows, all different, of the round's control page; fewer where the page has fewer.

    `loader` gives the tokens of an assign page. Raises CorpusError where every page of the pool is dealt out.
    """
    contributions = hashlib.sha256("".join(sorted(admitted)).encode("ascii")).digest()
    seed = hmac.digest(key, b"control" + round.to_bytes(8, "big") + contributions, "sha256")
    for i in range(_TRIES):
        page = _unassigned(manifest, round, _block(seed, i))
        count = window_count(loader(page), manifest.seq_len)
        if count:
            break
    else:
        raise CorpusError(f"corpus too small: no control page with text in {_TRIES} draws")
    picks: dict[Pick, None] = {}
    for place in range(i + 1, i + 1 + _TRIES * n):
        if len(picks) == min(n, count):
            break
        picks[Pick(page, int.from_bytes(_block(seed, place)[8:16], "big") % count)] = None
    return tuple(picks)


def _unassigned(manifest: Manifest, round: int, block: bytes) -> int:
    """The page a block names among those behind counters outside the round's span."""
    epoch, span = divmod(round // manifest.span, manifest.epoch_spans)
    counters = manifest.pools[Pool.ASSIGN] // manifest.run * manifest.run
    free = counters - manifest.span_pages
    if free < 1:
        raise CorpusError(
            f"corpus too small for a control page: the {manifest.pools[Pool.ASSIGN]} pages of the assign pool are all "
            "given out at once; lower --data.max_slots or --data.max_pages"
        )
    counter = int.from_bytes(block[:8], "big") % free
    return page_of(manifest, epoch, counter + manifest.span_pages * (counter >= span * manifest.span_pages))


def _block(seed: bytes, i: int) -> bytes:
    return hmac.digest(seed, i.to_bytes(8, "big"), "sha256")
