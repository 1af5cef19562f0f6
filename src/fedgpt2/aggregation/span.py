"""Vectors in the span of the contributions, known by their inner products alone.

NNM, Krum, the geometric median and centred clipping need nothing of n gradients but distances and norms, and give
back a linear combination of them. So one pass over the contributions adds up their Gram matrix (`gram`), everything
else happens here on n x n numbers in float64, and one more pass forms the weighted sum (`mean.weighted_mean`).

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

    x_i is scales[i], a power of two, times contribution i: 1 but for norms whose squares fp32 cannot hold.
    Inner products are kept about a centre r, one of the x or the origin: `inner[0, 0]` is <r, r>, `inner[0, 1:]` is
    <r, z_i>, `inner[1:, 1:]` is <z_i, z_j> with z_i = x_i - r, all 0 for the centre itself. Distances then do not
    suffer from what all x share: where updates are 1e-4 of what they are added to, squared distances from fp32 sums
    about the origin are 126x off, about a centre 1e-5.
    """

    inner: Float64  # [n + 1, n + 1]
    scales: Float64  # [n]
    mixing: Float64  # [m, n]

    @property
    def m(self) -> int:
        """How many vectors."""
        return len(self.mixing)

    def norms(self) -> Float64:
        """|y_i|, [m]."""
        return self._lengths(self.mixing)

    def distances(self) -> Float64:
        """|y_i - y_j|, [m, m], symmetric, zero on the diagonal.

        Differences are taken about the vector of median norm: what all vectors hold of a huge contribution cancels
        in the coefficients, before it is squared.
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
        """<x_i, x_j> of the unscaled contributions, about the origin, [n, n]."""
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
