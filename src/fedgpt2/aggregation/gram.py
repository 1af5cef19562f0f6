"""Inner products of n contributions, in one pass over them, and norms.

Letters: n contributions, d parameters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.span import Float64, Span
from fedgpt2.model.blocks import blocks

__all__ = ["gram", "norm"]

_NORM_BLOCK = 1 << 18
_LARGEST = 50  # binary exponent of the largest norm that is not scaled: squares stay far below fp32's 2^128
_COMMON = 40  # the same for a typical norm, of either sign: squares of its parts stay far above fp32's 2^-126
_NEAR = 0.1  # of the typical norm: for rows nearer to each other, sums about the origin are too imprecise


def norm(row: Float32[Tensor, " d"]) -> float:
    """Euclidean norm with relative error below 1e-5; not finite where a value is not.

    Squares are summed in fp32 within a block and in float64 across blocks; all in float64 where fp32 overflows.
    """
    parts = torch.split(row, _NORM_BLOCK)
    total = sum(float(torch.linalg.vector_norm(part)) ** 2 for part in parts)
    if not 1e-20 < total < 1e35:
        total = sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts)
    return float(np.sqrt(total))


def gram(rows: Sequence[Float32[Tensor, " d"]], norms: Sequence[float]) -> Span:
    """The span of `rows` (on the CPU, in memory or mapped from files) with the given `norms`.

    Inner products are taken about the origin. Where the rows turn out to be near each other relative to their norm, a
    second pass takes them about the row nearest to most others, which restores a relative error of distances of 1e-5.
    (The mean, or a row of median norm, would be a cheaper centre, but f flipped signs could spoil it.)

    Raises ValueError if there is no row, or a norm is not finite or is not that of its row.
    """
    lengths = np.asarray(norms, dtype=np.float64)
    if not len(rows) or len(rows) != len(lengths) or not np.isfinite(lengths).all():
        raise ValueError(f"need rows and a finite norm of each, got {len(rows)} rows and norms {list(norms)}")
    scales = _scales(lengths)
    span = _span(_products(rows, scales), scales)
    spread = np.median(span.distances(), axis=1)
    central = int(np.argmin(spread))
    if spread[central] >= _NEAR * np.median(lengths):
        return span
    return _span(_products(rows, scales, central), scales, central)


def _scales(norms: Float64) -> Float64:
    """Powers of two that bring squares into fp32's range: one for all typical rows, smaller ones for outliers."""
    exponents = np.frexp(norms)[1]
    typical = int(np.sort(exponents[norms > 0])[(np.count_nonzero(norms) - 1) // 2]) if norms.any() else 0
    common = 0 if abs(typical) <= _COMMON else -typical
    excess = np.maximum(0, exponents + common - _LARGEST)
    scales: Float64 = np.ldexp(1.0, np.clip(common - excess, -120, 120))
    return scales


def _span(products: Float64, scales: Float64, centre: int | None = None) -> Span:
    """A span whose vectors are the rows, from their inner products by `_products`."""
    if not np.isfinite(products).all():
        raise ValueError("a row holds NaN or Inf although its norm is finite")
    inner = np.zeros((len(scales) + 1, len(scales) + 1))
    inner[1:, 1:] = products
    if centre is not None:
        inner[0, 1:] = inner[1:, 0] = products[centre]
        inner[centre + 1, :] = inner[:, centre + 1] = 0.0  # z of the centre itself
        inner[0, 0] = products[centre, centre]
    return Span(inner, scales, np.diag(1.0 / scales))


def _products(rows: Sequence[Tensor], scales: Float64, centre: int | None = None) -> Float64:
    """Z Z^T, [n, n], of the scaled rows x; with a centre r = x_c, row c of Z is r and the others are z_i = x_i - r.

    Works in blocks that fit the cache, with float64 sums across them. Row c would be zero; putting r there keeps Z at
    n rows instead of n + 1 (16 rows multiply twice as fast as 17).
    """
    factors = None if (scales == 1.0).all() else torch.from_numpy(scales).float()[:, None]
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in blocks(rows):
        if factors is not None:
            block *= factors
        if centre is not None:
            block[:, :centre] -= block[:, centre : centre + 1]
            block[:, centre + 1 :] -= block[:, centre : centre + 1]
        total += torch.bmm(block, block.mT).sum(0, dtype=torch.float64)
    result: Float64 = total.numpy()
    return result
