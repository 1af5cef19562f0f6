"""Attacks on a score: contributions made of public vectors, with no gradient of this round or with ⅛ of a miner's work.

Each is a linear combination of recorded rows; two mixed vectors are first scaled to one length.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scoring.scores import Evidence

__all__ = ["ATTACKS", "contributions", "effort"]

Float64 = NDArray[np.float64]
Mix = Mapping[str, float]  # coefficients of rows; (a, b, c) below is a / |a| + c b / |b|

_SMALL_8: Mix = {f"small/{k}": 1 / 8 for k in range(8)}
_PADDING = ("agg/1", "ema/0.5", "ema/0.9", "sign/ema", "loud/1", "top/1")
_AMOUNTS = (0.25, 0.5, 1.0, 2.0, 4.0)


def _attacks() -> dict[str, tuple[Mix, Mix, float]]:
    nothing: Mix = {}
    made: dict[str, tuple[Mix, Mix, float]] = {}
    replays = ("agg/1", "agg/2", "agg/4", "moment", "ema/0.5", "ema/0.9", "ema/0.99", "step/1")
    bent = ("sign/1", "sign/ema", "norm/1", "loud/1", "top/1", "random")
    for name in (*replays, *bent, "stale/1", "stale/2", "stale/4", "stale/8"):
        made[name] = ({name: 1.0}, nothing, 0.0)
    made["mean agg 1-4"] = ({f"agg/{k}": 0.25 for k in range(1, 5)}, nothing, 0.0)
    made["2 agg/1 - agg/2"] = ({"agg/1": 2.0, "agg/2": -1.0}, nothing, 0.0)
    for amount in (0.5, 1.0, 2.0):
        made[f"agg/1 + {amount:g} random"] = ({"agg/1": 1.0}, {"random": 1.0}, amount)
    made["small"], made["wiener"] = ({"small/0": 1.0}, nothing, 0.0), ({"wiener": 1.0}, nothing, 0.0)
    for count in (2, 4, 8, 12):
        made[f"small x{count}"] = ({f"small/{k}": 1 / count for k in range(count)}, nothing, 0.0)
    for padding in _PADDING:
        for amount in _AMOUNTS:
            made[f"small + {amount:g} {padding}"] = ({"small/0": 1.0}, {padding: 1.0}, amount)
            made[f"small - {amount:g} {padding}"] = ({"small/0": 1.0}, {padding: 1.0}, -amount)
    for amount in (0.5, 1.0, 2.0):
        made[f"small x8 + {amount:g} agg/1"] = (_SMALL_8, {"agg/1": 1.0}, amount)
    return made


ATTACKS = _attacks()


def effort(name: str) -> str:
    """Cost of an attack as a share of a miner's work."""
    return "1/8" if name.startswith(("small", "wiener")) else "stale" if name.startswith("stale") else "0"


def contributions(evidence: Evidence) -> Float64:
    """Coefficients [r, m, n] of ATTACKS, in their order."""
    made = []
    for first, second, amount in ATTACKS.values():
        base = evidence.vector(first)[None, :]
        if amount:
            other = evidence.vector(second)
            unit = other[None, :] / evidence.lengths(other)[:, None]
            base = base / evidence.lengths(base[0])[:, None] + amount * unit
        made.append(np.broadcast_to(base, (len(evidence.gram), base.shape[1])))
    return np.stack(made, axis=1)
