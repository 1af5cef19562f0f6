"""The inner products of a round's evidence, in one pass over contributions and free vectors.

Letters: n contributions, k free vectors, d parameters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from fedgpt2.model.blocks import blocks
from fedgpt2.ranking.evidence import Free, Products

__all__ = ["KEPT", "inner", "measure"]

KEPT = 64  # contributions up to which their whole Gram matrix is evidence; of 1,000 it would be 10 MB a round

Float64 = NDArray[np.float64]

_TINY = 1e-30  # squares below this have lost digits in fp32


def measure(
    hotkeys: Sequence[str],
    contributions: Sequence[Float32[Tensor, " d"]],
    free: Sequence[tuple[Free, Float32[Tensor, " d"]]],
    gradient: Float32[Tensor, " d"],
    gram: Float64 | None = None,
) -> Products:
    """Inner products of the admitted `contributions`, in the order of `hotkeys`, with each other and what is free.

    All on the CPU, in memory or mapped from files. `gram` [n, n] are those of the contributions, where the aggregation
    has added them up already; without it they are added up here, up to KEPT contributions. A contribution with an inner
    product that is not finite is left out.

    Raises ValueError if the gradient's norm, or a free vector's, is not finite.
    """
    kinds, vectors = [kind for kind, _ in free], [vector for _, vector in free]
    rows, k, n = [gradient, *vectors, *contributions], len(vectors), len(contributions)
    kept = n <= KEPT
    whole = kept and gram is None
    products = inner(rows, len(rows) if whole else k + 1)
    if not np.isfinite(products[: k + 1, : k + 1]).all():
        raise ValueError("the scoring gradient, or a vector it is compared with, is not finite")
    among = products[k + 1 :, k + 1 :] if whole else gram if kept else None
    good = np.isfinite(products[: k + 1, k + 1 :]).all(axis=0)
    if among is not None:
        good &= np.isfinite(np.diagonal(among))
    chosen: list[int] = np.flatnonzero(good).tolist()
    columns = [k + 1 + i for i in chosen]
    return Products(
        miners=tuple(hotkeys[i] for i in chosen),
        free=tuple(kinds),
        gradient_norm=float(np.sqrt(products[0, 0])),
        gradient=tuple(products[0, columns].tolist()),
        gradient_free=tuple(products[0, 1 : k + 1].tolist()),
        contributions_free=tuple(map(tuple, products[1 : k + 1, columns].T.tolist())),
        free_gram=_triangle(products[1 : k + 1, 1 : k + 1]),
        gram=None if among is None else _triangle(among[np.ix_(chosen, chosen)]),
    )


def inner(rows: Sequence[Float32[Tensor, " d"]], first: int) -> Float64:
    """<row_i, row_j> for the `first` rows i and all rows j, [first, len(rows)].

    Sums in fp32 within a piece, in float64 across pieces; again in float64 where fp32 cannot hold a square.
    """
    products = _products(rows, first, torch.float32)
    squares = np.diagonal(products)
    if np.isfinite(products).all() and ((squares >= _TINY) | (squares == 0.0)).all():
        return products
    return _products(rows, first, torch.float64)


def _products(rows: Sequence[Tensor], first: int, dtype: torch.dtype) -> Float64:
    total = torch.zeros(first, len(rows), dtype=torch.float64)
    for block in blocks(rows, dtype):
        total += torch.bmm(block[:, :first].contiguous(), block.mT).sum(0, dtype=torch.float64)
    result: Float64 = total.numpy()
    return result


def _triangle(matrix: Float64) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row[: i + 1]) for i, row in enumerate(matrix.tolist()))
