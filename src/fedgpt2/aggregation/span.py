"""Vectors in the span of the contributions, represented by inner products.

NNM, Krum, the geometric median and centred clipping need only distances and norms of n gradients and return a linear
combination of them. So one pass over the contributions computes their Gram matrix (`gram`), the rule works on n x n
numbers in float64, and a second pass forms the weighted sum (`mean.weighted_mean`).

Letters: n contributions, m vectors formed from them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Float64", "Span"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """m vectors y = mixing @ x over n scaled contributions x, with the inner products of the x.

    x_i is contribution i times scales[i], a power of two that is 1 unless squares of the norm overflow fp32.
    Inner products are kept about a centre r, one of the x or the origin: `inner[0, 0]` is <r, r>, `inner[0, 1:]` is
    <r, z_i>, `inner[1:, 1:]` is <z_i, z_j> with z_i = x_i - r, all 0 for the centre itself. This avoids cancellation:
    where the x differ by 1e-4 of their norm, squared distances from fp32 sums about the origin are wrong by a factor
    of 126, about a centre by 1e-5.
    """

    inner: Float64  # [n + 1, n + 1]
    scales: Float64  # [n]
    mixing: Float64  # [m, n]

    @property
    def m(self) -> int:
        """Number of vectors."""
        return len(self.mixing)

    def norms(self) -> Float64:
        """|y_i|, [m]."""
        return self._lengths(self.mixing)

    def distances(self) -> Float64:
        """|y_i - y_j|, [m, m], symmetric, zero on the diagonal.

        Differences are taken from the vector of median norm: a huge contribution that all vectors contain then
        cancels in the coefficients, before squaring.
        """
        middle = int(np.argsort(self.norms(), kind="stable")[(self.m - 1) // 2])
        about = _about(self.mixing - self.mixing[middle])
        products = about @ self.inner @ about.T
        squares = np.diagonal(products)
        apart = squares[:, None] + squares[None, :] - (products + products.T)
        np.fill_diagonal(apart, 0.0)
        distances: Float64 = np.sqrt(np.maximum(apart, 0.0))
        return distances

    def distances_to(self, weights: Float64) -> Float64:
        """|y_i - sum_k w_k y_k| for weights [m]; [m]."""
        return self._lengths(self.mixing - weights @ self.mixing)

    def length(self, weights: Float64) -> float:
        """|sum_k w_k y_k| for weights [m]."""
        return float(self._lengths(weights[None, :] @ self.mixing)[0])

    def products(self) -> Float64:
        """Inner products of the unscaled contributions, about the origin, [n, n]."""
        about = np.concatenate([np.ones((len(self.scales), 1)), np.eye(len(self.scales))], axis=1)
        products: Float64 = (about @ self.inner @ about.T) / np.outer(self.scales, self.scales)
        return products

    def mixed(self, by: Float64) -> "Span":
        """The vectors by @ y, for `by` [k, m]."""
        return Span(self.inner, self.scales, by @ self.mixing)

    def scaled(self, by: Float64) -> "Span":
        """The vectors by_i * y_i, for `by` [m]."""
        return Span(self.inner, self.scales, by[:, None] * self.mixing)

    def _lengths(self, coefficients: Float64) -> Float64:
        """|a @ x| for each row a of [k, n]."""
        about = _about(coefficients)
        squares = ((about @ self.inner) * about).sum(1)
        lengths: Float64 = np.sqrt(np.maximum(squares, 0.0))
        return lengths


def _about(coefficients: Float64) -> Float64:
    """Coefficients of (r, z_1 … z_n) for those of x: a @ x = sum(a) r + a @ z."""
    return np.concatenate([coefficients.sum(1, keepdims=True), coefficients], axis=1)
