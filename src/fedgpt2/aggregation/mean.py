"""Weighted sums of contributions, and weights by assigned tokens.

Weights n_i / sum(n) of federated averaging (McMahan et al. 2017, arXiv 1602.05629, algorithm 1) make N miners equal to
one large batch, since every contribution is the mean gradient over its own tokens. Tokens are those the validator
assigned, never those a miner claims.

Letters: d parameters.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

__all__ = ["token_weights", "weighted_mean"]

_BLOCK = 1 << 19  # values of a block: 2 MiB, so that the sum stays in the cache while rows are added


def token_weights(tokens: Sequence[int]) -> list[float]:
    """n_i / sum(n). Raises ValueError unless every count is positive."""
    if not tokens or min(tokens) <= 0:
        raise ValueError(f"token counts must be positive, got {list(tokens)}")
    total = sum(tokens)
    return [count / total for count in tokens]


def weighted_mean(
    rows: Sequence[Float32[Tensor, " d"]],
    weights: Sequence[float],
    out: Float32[Tensor, " d"],
    scales: Sequence[float] | None = None,
) -> Float32[Tensor, " d"]:
    """Write sum(w_i x_i) into `out`, block by block: every row is read once, and there is no n x d matrix.

    With `scales` it is sum(w_i (s_i x_i)), for rows so long that s_i w_i would underflow fp32. Rows of weight 0 are
    not read.
    """
    parts = [
        (row, weight, scale)
        for row, weight, scale in zip(rows, weights, scales or [1.0] * len(rows), strict=True)
        if weight != 0.0
    ]
    if not parts:
        return out.zero_()
    for start in range(0, out.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        total = out[block]
        for i, (row, weight, scale) in enumerate(parts):
            values = row[block] if scale == 1.0 else row[block] * scale
            if i:
                total.add_(values, alpha=weight)
            else:
                torch.mul(values, weight, out=total)
    return out
