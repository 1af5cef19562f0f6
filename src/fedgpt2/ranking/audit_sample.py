"""Which miners are audited in a round."""

import hashlib
import math
from collections.abc import Iterable

from fedgpt2.ranking.data_authenticity import MEMORY
from fedgpt2.ranking.table import Standing, Table
from fedgpt2.types import Hotkey

__all__ = ["draw_sample"]


def draw_sample(table: Table, admitted: Iterable[Hotkey], n: int, seed: bytes) -> tuple[Hotkey, ...]:
    """Draw `n` of the admitted miners without replacement, in the order of their hotkeys.

    A miner's weight is the variance of its rating over (1 / MEMORY + the weight of its audits so far): a miner never
    audited is nine times as likely as one with many audits. Weighted sampling by Efraimidis and Spirakis, "Weighted
    random sampling with a reservoir" (2006): the largest u^(1/w) win, with u from SHA-256 of `seed` and the hotkey. The
    seed is derived from the evaluation key: secret before the answers are in, checkable after the run.
    """
    keys = []
    for hotkey in admitted:
        drawn = int.from_bytes(hashlib.sha256(seed + hotkey.encode()).digest()[:8], "big")
        keys.append((math.log((drawn + 1) / 2**64) / _weight(table.standings.get(hotkey, Standing())), hotkey))
    return tuple(sorted(hotkey for _, hotkey in sorted(keys, reverse=True)[:n]))


def _weight(standing: Standing) -> float:
    return standing.rating.sigma**2 / (1.0 / MEMORY + standing.audits.mean.weight)
