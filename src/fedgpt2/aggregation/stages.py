"""Pre-aggregation stages: each turns m vectors of a span into m' vectors, on n x n numbers only.

Every stage takes f, the number of vectors that may be hostile, and a seed for what it draws at random.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["ARC", "NNM", "Bucketing", "NormClip", "Stage", "shrink"]


@runtime_checkable
class Stage(Protocol):
    """A pre-aggregation stage."""

    def __call__(self, span: Span, f: int, seed: int) -> Span:
        """The vectors after this stage."""
        ...


@dataclass(frozen=True)
class NormClip:
    """Clip every vector to the median norm: y_i min(1, median_j |y_j| / |y_i|).

    As in SparseLoCo (2025, arXiv 2508.15706), section 2: no contribution outweighs a typical one by its norm.
    Where at least half of the vectors are zero, all become zero.
    """

    def __call__(self, span: Span, f: int, seed: int) -> Span:
        """The clipped vectors."""
        norms = span.norms()
        return span.scaled(shrink(norms, float(np.median(norms))))


@dataclass(frozen=True)
class ARC:
    """Adaptive robust clipping: clip the k = floor(2 (f / m) (m - f)) longest to the norm of the next.

    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, 2025, arXiv 2405.14432, algorithm 2.
    """

    def __call__(self, span: Span, f: int, seed: int) -> Span:
        """The clipped vectors."""
        m = span.m
        k = min(m - 1, max(0, 2 * f * (m - f) // m))
        norms = span.norms()
        return span.scaled(shrink(norms, float(np.sort(norms)[m - k - 1])))


@dataclass(frozen=True)
class NNM:
    """Nearest-neighbour mixing: y_i becomes the mean of the m - f vectors nearest to it, itself included.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing", 2023, arXiv 2302.01772, algorithm 2.
    Not robust by itself, since each hostile vector is still mixed with its own neighbours: a robust rule must follow.
    """

    def __call__(self, span: Span, f: int, seed: int) -> Span:
        """The mixed vectors."""
        keep = max(1, span.m - f)
        nearest = np.argsort(span.distances(), axis=1, kind="stable")[:, :keep]
        mixing: Float64 = np.zeros((span.m, span.m))
        np.put_along_axis(mixing, nearest, 1.0 / keep, axis=1)
        return span.mixed(mixing)


@dataclass(frozen=True)
class Bucketing:
    """Means of s vectors each, in random order: f hostile vectors affect at most f of the ceil(m / s) means.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022,
    arXiv 2006.09365, algorithm 1. s is lowered until more than half of the buckets are honest: the paper's
    s <= m / (2 f).
    """

    s: int = 2

    def __call__(self, span: Span, f: int, seed: int) -> Span:
        """The means."""
        m = span.m
        s = next((s for s in range(min(self.s, m), 1, -1) if -(-m // s) > 2 * f), 1)
        order = np.random.default_rng(seed).permutation(m)
        buckets = [order[start : start + s] for start in range(0, m, s)]
        mixing: Float64 = np.zeros((len(buckets), m))
        for i, members in enumerate(buckets):
            mixing[i, members] = 1.0 / len(members)
        return span.mixed(mixing)


def shrink(norms: Float64, longest: float) -> Float64:
    """Factors that shorten every norm to at most `longest`."""
    factors: Float64 = np.divide(longest, norms, out=np.ones_like(norms), where=norms > longest)
    return factors
