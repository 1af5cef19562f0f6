"""The inner products of a round's evidence, in one pass over contributions and baseline vectors.

Letters: n contributions, k baseline vectors, d parameters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from fedgpt2.model.blocks import blocks
from fedgpt2.protocol.round_record import BaselineVector, Products
from fedgpt2.types import Hotkey

__all__ = ["inner", "measure_products"]

Float64 = NDArray[np.float64]

_TINY = 1e-30  # squares below this have lost digits in fp32


def measure_products(
    hotkeys: Sequence[Hotkey],
    contributions: Sequence[Float32[Tensor, " d"]],
    baseline: Sequence[tuple[BaselineVector, Float32[Tensor, " d"]]],
    gradient: Float32[Tensor, " d"],
) -> Products:
    """Inner products of the gradient and the baseline vectors with each other and with the contributions.

    Contributions are in the order of `hotkeys`; all tensors are on the CPU, in memory or mapped from files. A
    contribution with an inner product that is not finite is left out.

    Raises ValueError if the norm of the gradient or of a baseline vector is not finite.
    """
    names, vectors = [name for name, _ in baseline], [vector for _, vector in baseline]
    k = len(vectors)
    products = inner([gradient, *vectors, *contributions], k + 1)
    if not np.isfinite(products[:, : k + 1]).all():
        raise ValueError("the norm of the scoring gradient or of a baseline vector is not finite")
    finite = np.isfinite(products[:, k + 1 :]).all(axis=0)
    chosen: list[int] = np.flatnonzero(finite).tolist()
    columns = [k + 1 + i for i in chosen]
    return Products(
        miners=tuple(hotkeys[i] for i in chosen),
        baseline=tuple(names),
        gradient_norm=float(np.sqrt(products[0, 0])),
        gradient=tuple(products[0, columns].tolist()),
        gradient_baseline=tuple(products[0, 1 : k + 1].tolist()),
        contributions_baseline=tuple(map(tuple, products[1:, columns].T.tolist())),
        baseline_gram=tuple(tuple(row[: i + 1]) for i, row in enumerate(products[1:, 1 : k + 1].tolist())),
    )


def inner(rows: Sequence[Float32[Tensor, " d"]], first: int) -> Float64:
    """<row_i, row_j> for the `first` rows i and all rows j, [first, len(rows)].

    Sums in fp32 within a block, in float64 across blocks; again in float64 where fp32 cannot hold a square.
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
