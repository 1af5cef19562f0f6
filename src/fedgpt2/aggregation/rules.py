"""Span rules: from m vectors of a span to one weight each. Pure, on n x n numbers in float64."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["CenteredClipping", "GeometricMedian", "Krum", "Mean", "MultiKrum", "SpanRule"]

_RELATIVE = 1e-6  # smoothing of distances, as a share of the median one: an absolute one would depend on the scale


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


def _krum_scores(span: Span, f: int) -> Float64:
    """Sum of squared distances to the m - f - 1 nearest others.

    (Blanchard et al. take m - f - 2; the newer analysis of arXiv 2302.01772 takes m - f - 1.)
    """
    nearest = np.sort(span.distances() ** 2, axis=1)[:, 1 : max(2, span.m - f)]
    scores: Float64 = nearest.sum(1)
    return scores


@dataclass(frozen=True)
class Krum:
    """The vector with the smallest sum of squared distances to its nearest neighbours.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries", 2017, arXiv 1703.02757.
    """

    def __call__(self, span: Span, f: int) -> Float64:
        """One at the chosen vector."""
        weights = np.zeros(span.m)
        weights[np.argmin(_krum_scores(span, f))] = 1.0
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

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022, arXiv 1912.13445, algorithm 2;
    nu is 1e-6 of the median distance instead of a constant.
    """

    iterations: int = 32

    def __call__(self, span: Span, f: int) -> Float64:
        """Weights of the iterate."""
        weights = np.full(span.m, 1.0 / span.m)
        for _ in range(self.iterations):
            distances = span.distances_to(weights)
            smallest = max(_RELATIVE * float(np.median(distances)), np.finfo(np.float64).tiny)
            inverse = 1.0 / np.maximum(distances, smallest)
            weights = inverse / inverse.sum()
        return weights


@dataclass(frozen=True)
class CenteredClipping:
    """v <- v + (1 / m) sum_i (y_i - v) min(1, tau / |y_i - v|), from the vector nearest to all others.

    Karimireddy, He, Jaggi, "Learning from History", 2021, arXiv 2012.10333, equation 3; tau is the median
    distance, and v starts at the medoid, for a mean to start from would be the attacker's.
    """

    iterations: int = 5

    def __call__(self, span: Span, f: int) -> Float64:
        """Weights of the iterate."""
        weights = np.zeros(span.m)
        weights[np.argmin(np.median(span.distances(), axis=1))] = 1.0
        for _ in range(self.iterations):
            distances = span.distances_to(weights)
            tau = float(np.median(distances))
            share = np.minimum(1.0, tau / np.maximum(distances, np.finfo(np.float64).tiny)) / span.m
            weights = weights * (1.0 - share.sum()) + share
        return weights
