"""Whose step is tried out this round, for the true loss before and after it."""

import hashlib
import math
from collections.abc import Iterable

from fedgpt2.ranking.rating import newcomer
from fedgpt2.ranking.table import Table
from fedgpt2.types import Hotkey

__all__ = ["choose"]


def choose(table: Table, admitted: Iterable[Hotkey], n: int, seed: bytes) -> tuple[Hotkey, ...]:
    """`n` of the admitted, in the order of their hotkeys: the likelier, the less sure their rating is.

    Drawn without replacement in proportion to the variance (Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006: the largest u^(1/w) win), u by SHA-256 of `seed` and hotkey. With a seed from the evaluation key
    nobody knows the sample before the answers are in, and everybody can check it after the run.
    """
    unknown = newcomer(table.rule)
    keys = []
    for hotkey in admitted:
        rating = table.standings[hotkey].rating if hotkey in table.standings else unknown
        drawn = int.from_bytes(hashlib.sha256(seed + hotkey.encode()).digest()[:8], "big")
        keys.append((math.log((drawn + 1) / 2**64) / rating.sigma**2, hotkey))
    return tuple(sorted(hotkey for _, hotkey in sorted(keys, reverse=True)[:n]))
