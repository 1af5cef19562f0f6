"""Vectors in the span of the contributions, known by their inner products alone.

NNM, Krum, the geometric median and centred clipping need nothing of n gradients but distances and norms, and give
back a linear combination of them. So one pass over the contributions adds up the n x n Gram matrix, everything else
happens on n x n numbers in float64, and one more pass forms the weighted sum.

Letters: n contributions, m vectors formed from them, d parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Float64", "Span", "gram"]

Float64 = NDArray[np.float64]

_BLOCK = 1 << 16  # values a block of each row: 16 rows fill 4 MiB, so that a block is read from memory once
_LARGEST = 1e15  # norms beyond this are scaled first: their squares would not fit fp32


@dataclass(frozen=True)
class Span:
    """m vectors y = mixing @ x over n contributions x, with the inner products of the x.

    Inner products are kept about a centre r, one of the contributions: `inner[0, 0]` is <r, r>, `inner[0, 1:]` is
    <r, z_i>, `inner[1:, 1:]` is <z_i, z_j> with z_i = x_i - r. Distances then do not suffer from what all x share:
    fp32 sums about the origin are 126x off where updates are 1e-4 of what they are added to, centred ones 5e-7.
    """

    inner: Float64  # [n + 1, n + 1]
    mixing: Float64  # [m, n]

    @property
    def m(self) -> int:
        """How many vectors."""
        return len(self.mixing)

    def norms(self) -> Float64:
        """|y_i|, [m]."""
        return self._lengths(self.mixing)

    def distances(self) -> Float64:
        """|y_i - y_j|, [m, m], zero on the diagonal."""
        pairs = self.mixing[:, None, :] - self.mixing[None, :, :]
        return self._lengths(pairs.reshape(-1, pairs.shape[-1])).reshape(self.m, self.m)

    def distances_to(self, weights: Float64) -> Float64:
        """|y_i - sum_k w_k y_k| for weights [m]; [m]."""
        return self._lengths(self.mixing - weights @ self.mixing)

    def mixed(self, by: Float64) -> "Span":
        """The vectors by @ y, for `by` [k, m]."""
        return Span(self.inner, by @ self.mixing)

    def scaled(self, by: Float64) -> "Span":
        """The vectors by_i * y_i, for `by` [m]."""
        return Span(self.inner, by[:, None] * self.mixing)

    def _lengths(self, coefficients: Float64) -> Float64:
        """|a @ x| for each row a of [k, n]: a @ x = sum(a) r + a @ z."""
        about = np.concatenate([coefficients.sum(1, keepdims=True), coefficients], axis=1)
        squares = ((about @ self.inner) * about).sum(1)
        lengths: Float64 = np.sqrt(np.maximum(squares, 0.0))
        return lengths


def gram(rows: Sequence[Tensor], norms: Sequence[float]) -> Span:
    """The span of `rows` ([d] fp32 each, on the CPU, in memory or mapped from a file), whose norms are `norms`.

    Raises ValueError for a norm that is not finite: such a row must have been left out before.
    """
    lengths = np.asarray(norms, dtype=np.float64)
    if not np.isfinite(lengths).all():
        raise ValueError("a row whose norm is not finite cannot be aggregated")
    scale = np.where(lengths > _LARGEST, _LARGEST / np.maximum(lengths, 1.0), 1.0)
    centre = int(np.argsort(lengths * scale, kind="stable")[(len(rows) - 1) // 2])
    inner = _inner(rows, torch.from_numpy(scale).float() if (scale < 1).any() else None, centre)
    return Span(inner, np.diag(1.0 / scale))


def _inner(rows: Sequence[Tensor], scale: Tensor | None, centre: int) -> Float64:
    """Inner products of (r, z_1 … z_n): fp32 products within a block, float64 sums across blocks."""
    n, d = len(rows), rows[0].numel()
    total = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    buffer = torch.empty(n + 1, min(_BLOCK, d))
    for start in range(0, d, _BLOCK):
        block = buffer[:, : min(_BLOCK, d - start)]
        for i, row in enumerate(rows):
            block[i + 1] = row[start : start + _BLOCK]
        if scale is not None:
            block[1:] *= scale[:, None]
        block[0] = block[centre + 1]
        block[1:] -= block[0].clone()
        total += block @ block.T
    result: Float64 = total.numpy()
    return result
