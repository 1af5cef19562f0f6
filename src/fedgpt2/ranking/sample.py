"""Whose step is tried out this round, for the true loss before and after it."""

import hashlib
import math
from collections.abc import Iterable

from fedgpt2.ranking.audit import MEMORY
from fedgpt2.ranking.rating import newcomer
from fedgpt2.ranking.table import Standing, Table
from fedgpt2.types import Hotkey

__all__ = ["choose"]


def choose(table: Table, admitted: Iterable[Hotkey], n: int, seed: bytes) -> tuple[Hotkey, ...]:
    """`n` of the admitted, in the order of their hotkeys: the likelier, the less is known of them.

    Drawn without replacement in proportion to the rating's variance over 1 / MEMORY + the weight of the audits so far,
    so that one never audited is nine times as likely as one of whom audits have told all (Efraimidis and Spirakis,
    "Weighted random sampling with a reservoir", 2006: the largest u^(1/w) win), u by SHA-256 of `seed` and hotkey.
    With a seed from the evaluation key nobody knows the sample before the answers are in, and everybody can check it
    after the run.
    """
    unknown = Standing(newcomer(table.rule))
    keys = []
    for hotkey in admitted:
        drawn = int.from_bytes(hashlib.sha256(seed + hotkey.encode()).digest()[:8], "big")
        keys.append((math.log((drawn + 1) / 2**64) / _likelihood(table.standings.get(hotkey, unknown)), hotkey))
    return tuple(sorted(hotkey for _, hotkey in sorted(keys, reverse=True)[:n]))


def _likelihood(standing: Standing) -> float:
    return standing.rating.sigma**2 / (1.0 / MEMORY + standing.grounded.mean.weight)
