"""Span rules: from m vectors of a span to one weight each. Pure, on n x n numbers in float64.

Weights are at least 0 and add up to 1, so that no aggregate is longer than the longest vector.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["CenteredClipping", "GeometricMedian", "Krum", "Mean", "MultiKrum", "SpanRule"]

_RELATIVE = 1e-6  # smoothing of distances, as a share of the median one: an absolute one would depend on the scale
_SETTLED = 1e-9  # largest change of a weight after which an iteration is done


@runtime_checkable
class SpanRule(Protocol):
    """A rule whose result is a combination of its inputs."""

    def __call__(self, span: Span, f: int) -> Float64:
        """Weights [m]; the aggregate is sum_i w_i y_i."""
        ...


@dataclass(frozen=True)
class Mean:
    """1 / m each. Not robust: one vector moves it without bound."""

    def __call__(self, span: Span, f: int) -> Float64:
        """Equal weights."""
        return np.full(span.m, 1.0 / span.m)


@dataclass(frozen=True)
class Krum:
    """The vector with the smallest sum of squared distances to its nearest neighbours.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries", 2017, arXiv 1703.02757.
    """

    def __call__(self, span: Span, f: int) -> Float64:
        """One at the chosen vector; two vectors, say, have the same score and share it."""
        chosen = _least(_krum_scores(span, f))
        weights: Float64 = chosen / np.count_nonzero(chosen)
        return weights


@dataclass(frozen=True)
class MultiKrum:
    """Mean of the m - f vectors with the smallest Krum scores (same paper)."""

    def __call__(self, span: Span, f: int) -> Float64:
        """Equal weights of the chosen."""
        keep = max(1, span.m - f)
        weights = np.zeros(span.m)
        weights[np.argsort(_krum_scores(span, f), kind="stable")[:keep]] = 1.0 / keep
        return weights


@dataclass(frozen=True)
class GeometricMedian:
    """argmin_y sum_i |y - y_i| by the smoothed Weiszfeld iteration: w_i proportional to 1 / max(nu, |y - y_i|).

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022, arXiv 1912.13445, algorithm 2.
    Here nu is 1e-6 of the median distance instead of a constant. The iteration starts among the nearer half of the
    vectors: a step leaves f / (m - f) of what a mean owes to a liar, and 1e30 would outlast a hundred of them. Where
    one of the vectors is the median, which NNM makes common and the iteration slow, it is taken at once.
    """

    iterations: int = 100

    def __call__(self, span: Span, f: int) -> Float64:
        """Weights of the iterate."""
        weights = _vertex(span)
        if weights is not None:
            return weights
        weights = _nearer_half(span)
        for _ in range(self.iterations):
            distances = span.distances_to(weights)
            smallest = _RELATIVE * float(np.median(distances))
            inverse = np.divide(smallest, distances, out=np.ones(span.m), where=distances > smallest)
            before, weights = weights, inverse / inverse.sum()
            if np.abs(weights - before).max() < _SETTLED:
                break
        return weights


@dataclass(frozen=True)
class CenteredClipping:
    """v <- v + (1 / m) sum_i (y_i - v) min(1, tau / |y_i - v|), from among the nearer half.

    Karimireddy, He, Jaggi, "Learning from History", 2021, arXiv 2012.10333, equation 3; tau is the median distance
    from v, and v starts where `GeometricMedian` does, for a mean to start from would be the attacker's.
    """

    iterations: int = 5

    def __call__(self, span: Span, f: int) -> Float64:
        """Weights of the iterate."""
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
    """One at the vector that is the geometric median, if one is: those at its place hold it against all others' pull.

    Vardi, Zhang, "The multivariate L1-median and associated data depth", PNAS 97 (4), 2000.
    """
    distances = span.distances()
    best = int(np.argmin(distances.sum(1)))
    here = distances[best] <= _RELATIVE * float(np.median(distances[best]))
    pull = np.divide(1.0, distances[best], out=np.zeros(span.m), where=~here)
    pull[best] -= pull.sum()
    if span.length(pull) > (1.0 - _RELATIVE) * np.count_nonzero(here):  # at equality it is one of many: take no side
        return None
    weights = np.zeros(span.m)
    weights[best] = 1.0
    return weights


def _nearer_half(span: Span) -> Float64:
    """Equal weights of the m // 2 + 1 vectors nearest to the one that is nearest to most; ties share.

    More than half of the vectors lie around it, so at least one honest one: it is no further out than they spread.
    """
    distances = span.distances()
    reach = np.median(distances, axis=1)
    nearest = np.argsort(distances[_least(reach)], axis=1, kind="stable")[:, : span.m // 2 + 1]
    weights: Float64 = np.bincount(nearest.ravel(), minlength=span.m) / nearest.size
    return weights


def _least(values: Float64) -> NDArray[np.bool_]:
    """Where the smallest value is, ties included: so that no order of contributions decides."""
    least: NDArray[np.bool_] = values <= values.min() * (1.0 + _SETTLED)
    return least
