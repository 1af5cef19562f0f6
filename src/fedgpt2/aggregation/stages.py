"""Stages before the rule: each turns m vectors of a span into m' vectors. Pure, on n x n numbers.

Every stage takes f, the number of contributions that may be hostile.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["ARC", "NNM", "Bucketing", "NormClip", "Stage"]

_TINY = 1e-30


class Stage(Protocol):
    """A pre-aggregation."""

    def __call__(self, span: Span, f: int) -> Span:
        """The vectors after this stage."""
        ...


@dataclass(frozen=True)
class NormClip:
    """Clip every vector to the median norm: y_i min(1, median_j |y_j| / |y_i|).

    As in SparseLoCo (2025, arXiv 2508.15706), section 2: no contribution outweighs the typical one by its length.
    """

    def __call__(self, span: Span, f: int) -> Span:
        """The clipped vectors."""
        norms = span.norms()
        return span.scaled(np.minimum(1.0, np.median(norms) / np.maximum(norms, _TINY)))


@dataclass(frozen=True)
class ARC:
    """Adaptive robust clipping: clip the k = floor(2 (f / n) (n - f)) longest to the norm of the next.

    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, 2025, arXiv 2405.14432, algorithm 2.
    """

    def __call__(self, span: Span, f: int) -> Span:
        """The clipped vectors."""
        norms, n = span.norms(), span.m
        k = min(n - 1, int(2 * (f / n) * (n - f)))
        if k == 0:
            return span
        limit = np.sort(norms)[n - k - 1]
        return span.scaled(np.minimum(1.0, limit / np.maximum(norms, _TINY)))


@dataclass(frozen=True)
class NNM:
    """Nearest-neighbour mixing: y_i becomes the mean of the n - f vectors nearest to it, itself included.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing", 2023, arXiv 2302.01772, algorithm 2.
    """

    def __call__(self, span: Span, f: int) -> Span:
        """The mixed vectors."""
        distances, keep = span.distances(), max(1, span.m - f)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :keep]
        mixing: Float64 = np.zeros((span.m, span.m))
        np.put_along_axis(mixing, nearest, 1.0 / keep, axis=1)
        return span.mixed(mixing)


@dataclass(frozen=True)
class Bucketing:
    """Means of s vectors each, in an order drawn by `seed`; f hostile ones then spoil at most f of ceil(n / s) means.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022,
    arXiv 2006.09365, algorithm 1.
    """

    s: int = 2
    seed: int = 0

    def __call__(self, span: Span, f: int) -> Span:
        """The means."""
        order = np.random.default_rng(self.seed).permutation(span.m)
        buckets = [order[start : start + self.s] for start in range(0, span.m, self.s)]
        mixing: Float64 = np.zeros((len(buckets), span.m))
        for i, members in enumerate(buckets):
            mixing[i, members] = 1.0 / len(members)
        return span.mixed(mixing)
