"""Span rules: one weight for each of m vectors of a span, computed on n x n numbers in float64.

Weights are at least 0 and sum to 1, so an aggregate is never longer than the longest vector.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["CenteredClipping", "GeometricMedian", "Krum", "Mean", "MultiKrum", "SpanRule"]

_SMOOTHING = 1e-6  # of distances, relative to the median one: independent of the gradients' scale
_CONVERGED = 1e-9  # an iteration ends when no weight changes by more


@runtime_checkable
class SpanRule(Protocol):
    """A rule whose result is a linear combination of its inputs."""

    def weights(self, span: Span, f: int) -> Float64:
        """Weights w [m] where f vectors may be hostile; the aggregate is sum_i w_i y_i."""
        ...


@dataclass(frozen=True)
class Mean:
    """Equal weights 1 / m; not robust unless a stage bounds the vectors."""

    def weights(self, span: Span, f: int) -> Float64:
        """1 / m each."""
        return np.full(span.m, 1.0 / span.m)


@dataclass(frozen=True)
class Krum:
    """The vector with the smallest sum of squared distances to its nearest neighbours.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries", 2017, arXiv 1703.02757.
    """

    def weights(self, span: Span, f: int) -> Float64:
        """1 for the chosen vector; vectors with the same score share it."""
        chosen = _least(_krum_scores(span, f))
        weights: Float64 = chosen / np.count_nonzero(chosen)
        return weights


@dataclass(frozen=True)
class MultiKrum:
    """Mean of the m - f vectors with the smallest Krum scores (same paper)."""

    def weights(self, span: Span, f: int) -> Float64:
        """Equal weights for the chosen vectors."""
        keep = max(1, span.m - f)
        weights = np.zeros(span.m)
        weights[np.argsort(_krum_scores(span, f), kind="stable")[:keep]] = 1.0 / keep
        return weights


@dataclass(frozen=True)
class GeometricMedian:
    """argmin_y sum_i |y - y_i| by the smoothed Weiszfeld iteration: w_i proportional to 1 / max(nu, |y - y_i|).

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022, arXiv 1912.13445, algorithm 2.
    Here nu is 1e-6 of the median distance, not a constant. The iteration starts from the mean of the nearer half: a
    step reduces the influence of hostile vectors by a factor f / (m - f), too slowly for a start that contains 1e30.
    Where the median is one of the vectors, which NNM makes common and Weiszfeld slow, it is found directly.
    """

    iterations: int = 100

    def weights(self, span: Span, f: int) -> Float64:
        """Weights of the last iterate."""
        weights = _vertex(span)
        if weights is not None:
            return weights
        weights = _nearer_half(span)
        for _ in range(self.iterations):
            distances = span.distances_to(weights)
            smallest = _SMOOTHING * float(np.median(distances))
            inverse = np.divide(smallest, distances, out=np.ones(span.m), where=distances > smallest)
            before, weights = weights, inverse / inverse.sum()
            if np.abs(weights - before).max() < _CONVERGED:
                break
        return weights


@dataclass(frozen=True)
class CenteredClipping:
    """v <- v + (1 / m) sum_i (y_i - v) min(1, tau / |y_i - v|).

    Karimireddy, He, Jaggi, "Learning from History", 2021, arXiv 2012.10333, equation 3; tau is the median distance
    from v. v starts at the mean of the nearer half, as in `GeometricMedian`: the mean of all could be hostile.
    """

    iterations: int = 5

    def weights(self, span: Span, f: int) -> Float64:
        """Weights of the last iterate."""
        weights = _nearer_half(span)
        for _ in range(self.iterations):
            distances = span.distances_to(weights)
            tau = float(np.median(distances))
            share = np.divide(tau, distances, out=np.ones(span.m), where=distances > tau) / span.m
            weights = weights * (1.0 - share.sum()) + share
        return weights


def _krum_scores(span: Span, f: int) -> Float64:
    """Sum of squared distances to the m - f - 1 nearest others.

    (Blanchard et al. take m - f - 2; the newer analysis of arXiv 2302.01772 takes m - f - 1.)
    """
    nearest = np.sort(span.distances() ** 2, axis=1)[:, 1 : max(2, span.m - f)]
    scores: Float64 = nearest.sum(1)
    return scores


def _vertex(span: Span) -> Float64 | None:
    """Weight 1 for a vector that is the geometric median, if there is one.

    It is one if the sum of unit vectors towards all others is at most the number of vectors that coincide with it.

    Vardi, Zhang, "The multivariate L1-median and associated data depth", PNAS 97 (4), 2000.
    """
    distances = span.distances()
    best = int(np.argmin(distances.sum(1)))
    here = distances[best] <= _SMOOTHING * float(np.median(distances[best]))
    pull = np.divide(1.0, distances[best], out=np.zeros(span.m), where=~here)
    pull[best] -= pull.sum()
    if span.length(pull) > (1.0 - _SMOOTHING) * np.count_nonzero(here):  # at equality it is one of several medians
        return None
    weights = np.zeros(span.m)
    weights[best] = 1.0
    return weights


def _nearer_half(span: Span) -> Float64:
    """Equal weights for the m // 2 + 1 vectors nearest to the most central one; ties share.

    These are more than half of all vectors, so one at least is honest, and their mean is near the honest vectors.
    """
    distances = span.distances()
    reach = np.median(distances, axis=1)
    nearest = np.argsort(distances[_least(reach)], axis=1, kind="stable")[:, : span.m // 2 + 1]
    weights: Float64 = np.bincount(nearest.ravel(), minlength=span.m) / nearest.size
    return weights


def _least(values: Float64) -> NDArray[np.bool_]:
    """Mask of the smallest values, ties included, so that the order of contributions does not matter."""
    least: NDArray[np.bool_] = values <= values.min() * (1.0 + _CONVERGED)
    return least
