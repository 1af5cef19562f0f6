"""Mean by assigned tokens: federated averaging's weighting (McMahan et al. 2017, arXiv 1602.05629, Algorithm 1).

With every contribution the mean gradient over its own tokens, weights n_i / sum(n) make N miners equal to one big
batch. Tokens are those the validator assigned, never those a miner claims.

Letters: d parameters.
"""

from collections.abc import Sequence

from jaxtyping import Float32
from torch import Tensor

__all__ = ["token_weights", "weighted_mean"]

_BLOCK = 1 << 20  # values a block: 4 MiB of each row, so that the sum stays in the cache while rows are added


def token_weights(tokens: Sequence[int]) -> list[float]:
    """n_i / sum(n). Raises ValueError unless every count is positive."""
    if not tokens or min(tokens) <= 0:
        raise ValueError(f"token counts must be positive, got {list(tokens)}")
    total = sum(tokens)
    return [count / total for count in tokens]


def weighted_mean(
    rows: Sequence[Float32[Tensor, " d"]], weights: Sequence[float], out: Float32[Tensor, " d"]
) -> Float32[Tensor, " d"]:
    """sum(w_i x_i) into `out`, block by block: every row is read once and no n x d matrix is made."""
    for start in range(0, out.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        total = out[block].zero_()
        for row, weight in zip(rows, weights, strict=True):
            total.add_(row[block], alpha=weight)
    return out
