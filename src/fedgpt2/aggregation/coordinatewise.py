"""Coordinatewise rules: order statistics of each parameter over the m vectors, block by block.

Rows are sorted by a sorting network, whose compare-exchange steps (minimum and maximum of two rows) work on whole rows
in the cache; sorting every column by itself takes 10 to 20 times as long.

Letters: m vectors, b values of a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor

__all__ = ["CoordinatewiseRule", "Median", "PlainFunction", "TrimmedMean", "network"]


@runtime_checkable
class CoordinatewiseRule(Protocol):
    """A rule that treats every parameter by itself."""

    def reduce(self, block: Float32[Tensor, "m b"], f: int) -> Float32[Tensor, " b"]:
        """Aggregate b parameters of m vectors, of which f may be hostile; may overwrite the block."""
        ...


@dataclass(frozen=True)
class Median:
    """Median of each parameter; the mean of the middle two for an even m.

    Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning", 2018, arXiv 1803.01498, option I.
    """

    def reduce(self, block: Float32[Tensor, "m b"], f: int) -> Float32[Tensor, " b"]:
        """Median over the rows."""
        rows, m = _sort(block), len(block)
        if m % 2:
            return rows[m // 2]
        return rows[m // 2 - 1].mul(0.5).add_(rows[m // 2], alpha=0.5)


@dataclass(frozen=True)
class TrimmedMean:
    """Mean of each parameter without the f smallest and the f largest values (same paper, option II).

    Where that would leave no value, m <= 2 f, it is the median.
    """

    def reduce(self, block: Float32[Tensor, "m b"], f: int) -> Float32[Tensor, " b"]:
        """Trimmed mean over the rows."""
        trim = min(f, (len(block) - 1) // 2)
        rows = _sort(block)[trim : len(block) - trim]
        total = rows[0] / len(rows)
        for row in rows[1:]:
            total.add_(row, alpha=1.0 / len(rows))
        return total


@dataclass(frozen=True)
class PlainFunction:
    """A user's function (rows [m, d], f) -> [d], called once with all parameters: it holds an m x d matrix."""

    function: Callable[[Tensor, int], Tensor]

    def reduce(self, block: Float32[Tensor, "m b"], f: int) -> Float32[Tensor, " b"]:
        """The function's result. Raises ValueError if it is not one row."""
        row = self.function(block, f)
        if row.shape != block.shape[1:]:
            raise ValueError(f"returned shape {tuple(row.shape)} for rows of shape {tuple(block.shape)}")
        return row.float()


def _sort(block: Tensor) -> list[Tensor]:
    """The rows of the block, sorted in every column."""
    rows = list(block)
    spare = torch.empty_like(rows[0])
    for low, high in network(len(rows)):
        torch.minimum(rows[low], rows[high], out=spare)
        torch.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows


@lru_cache(maxsize=128)
def network(m: int) -> tuple[tuple[int, int], ...]:
    """Comparators of Batcher's merge exchange for m rows (Knuth, The Art of Computer Programming 3, 5.2.2, alg. M)."""
    return tuple(_merge_exchange(m))


def _merge_exchange(m: int) -> Iterator[tuple[int, int]]:
    top = 1 << max(0, (m - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, distance = top, 0, p
        while distance > 0:
            for i in range(m - distance):
                if i & p == r:
                    yield i, i + distance
            distance, q, r = (q - p, q >> 1, p) if q != p else (0, q, r)
        p >>= 1
