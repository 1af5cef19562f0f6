"""The effect of candidate attacks on a rule, from inner products alone: no candidate row is written out.

A candidate is a combination of the honest gradients, their standard deviation and noise. The inner products of these
few vectors, computed once, give those of every candidate; stages and span rules need no more, and the distance of the
aggregate from the honest mean is a quadratic form. Twenty trials then cost less than one dense aggregate.

Letters: h honest gradients, f hostile ones, v vectors of the span, s sampled coordinates, d parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.clusters import clusters, one_vote
from fedgpt2.aggregation.combine import byzantine
from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule
from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.aggregation.span import Float64
from fedgpt2.simulate.attacks.buffers import DISTINCT
from fedgpt2.simulate.attacks.gradient_stats import Moments, moments

__all__ = ["Probe", "probe"]

_SAMPLED = 1 << 16  # coordinates on which a coordinatewise rule is tried, at most


@dataclass(frozen=True)
class Probe:
    """A rule on which candidates can be tried."""

    of: Moments  # its further directions are the hostile miners' noise
    pipeline: Pipeline
    f: int
    sample: Float32[Tensor, "v s"] | None  # the span's vectors at some coordinates, for a coordinatewise rule

    def sent(self, mean: float, std: float) -> Float64:
        """Coefficients [f, v] of the hostile rows around mean * mean + std * std; noise scales with their norm."""
        length = DISTINCT * self.of.span.length(self.of.point(mean, std))
        return np.stack([self.of.point(mean, std, length * np.eye(self.f)[i]) for i in range(self.f)])

    def damage(self, mean: float, std: float) -> float:
        """Distance of the aggregate from the honest mean.

        Exact for span rules; for coordinatewise rules an estimate from the sampled coordinates.
        """
        span = self.of.span.mixed(np.concatenate([np.eye(self.of.h, self.of.span.m), self.sent(mean, std)]))
        f = byzantine(span.m, 0)
        span = one_vote(span, clusters(span))
        for stage in self.pipeline.stages:
            span = stage(span, f, 0)
        rule = self.pipeline.rule
        if isinstance(rule, CoordinatewiseRule):
            return self._on_sample(rule, span.mixing, f)
        weights: Float64 = rule.weights(span, f) @ span.mixing
        return self.of.span.length(weights - self.of.point(1.0))

    def _on_sample(self, rule: CoordinatewiseRule, mixing: Float64, f: int) -> float:
        sample = torch.empty(0, 0) if self.sample is None else self.sample
        aggregate = rule.reduce(torch.from_numpy(mixing).float() @ sample, f)
        apart = float((aggregate - sample[: self.of.h].mean(0)).norm())
        return float(apart * math.sqrt(self.of.mean.numel() / sample.shape[1]))


def probe(
    honest: Float32[Tensor, "h d"], noise: Sequence[Float32[Tensor, " d"]], pipeline: Pipeline, rng: torch.Generator
) -> Probe:
    """A probe of the rule for as many hostile miners as there are rows of noise."""
    of = moments(honest, noise)
    if not isinstance(pipeline.rule, CoordinatewiseRule):
        return Probe(of, pipeline, len(noise), None)
    d = honest.shape[1]
    where = torch.arange(d) if d <= _SAMPLED else torch.randint(d, (_SAMPLED,), generator=rng)
    further = [of.std, *noise]
    rows = [honest[:, where], *((of.mean[where] + row[where])[None] for row in further)]
    return Probe(of, pipeline, len(noise), torch.cat(rows))
