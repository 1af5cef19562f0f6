"""How far liars can move a rule, from inner products alone: no candidate is ever written out.

What liars try is a combination of the honest gradients, their standard deviation and some noise. The inner products
of these few vectors, taken once, give those of every candidate; the rule's stages and weights need no more, and the
aggregate's distance from the honest mean is a quadratic form. Twenty trials then cost less than one dense aggregate.

Letters: h honest gradients, f liars, v vectors of the span, s coordinates looked at, d parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.clusters import clusters, one_vote
from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule
from fedgpt2.aggregation.pipeline import Pipeline, byzantine
from fedgpt2.aggregation.span import Float64
from fedgpt2.simulate.attacks.buffers import VOTE
from fedgpt2.simulate.attacks.gradient_stats import Moments, moments

__all__ = ["Probe", "probe"]

_LOOKED_AT = 1 << 16  # coordinates on which a coordinatewise rule is tried; all, where there are no more


@dataclass(frozen=True)
class Probe:
    """A rule that can be tried."""

    of: Moments  # its further directions are the liars' noise
    pipeline: Pipeline
    liars: int
    sample: Float32[Tensor, "v s"] | None  # the span's vectors at some coordinates, for a coordinatewise rule

    def sent(self, mean: float, std: float) -> Float64:
        """What liars send who aim at mean * mean + std * std: coefficients [f, v]. Their noise is by its length."""
        length = VOTE * self.of.span.length(self.of.point(mean, std))
        return np.stack([self.of.point(mean, std, length * np.eye(self.liars)[i]) for i in range(self.liars)])

    def damage(self, mean: float, std: float) -> float:
        """How far the aggregate would lie from the honest mean.

        Exact for rules that weigh contributions; for coordinatewise ones an estimate from the coordinates looked at.
        """
        span = self.of.span.mixed(np.concatenate([np.eye(self.of.h, self.of.span.m), self.sent(mean, std)]))
        f = byzantine(span.m, 0)
        span = one_vote(span, clusters(span))
        for stage in self.pipeline.stages:
            span = stage(span, f, 0)
        rule = self.pipeline.rule
        if isinstance(rule, CoordinatewiseRule):
            return self._looked_at(rule, span.mixing, f)
        weights: Float64 = rule(span, f) @ span.mixing
        return self.of.span.length(weights - self.of.point(1.0))

    def _looked_at(self, rule: CoordinatewiseRule, mixing: Float64, f: int) -> float:
        sample = torch.empty(0, 0) if self.sample is None else self.sample
        aggregate = rule.reduce(torch.from_numpy(mixing).float() @ sample, f)
        apart = float((aggregate - sample[: self.of.h].mean(0)).norm())
        return float(apart * math.sqrt(self.of.mean.numel() / sample.shape[1]))


def probe(
    honest: Float32[Tensor, "h d"], noise: Sequence[Float32[Tensor, " d"]], pipeline: Pipeline, rng: torch.Generator
) -> Probe:
    """The rule, ready to be tried by as many liars as there are rows of noise."""
    of = moments(honest, noise)
    if not isinstance(pipeline.rule, CoordinatewiseRule):
        return Probe(of, pipeline, len(noise), None)
    d = honest.shape[1]
    where = torch.arange(d) if d <= _LOOKED_AT else torch.randint(d, (_LOOKED_AT,), generator=rng)
    further = [of.std, *noise]
    rows = [honest[:, where], *((of.mean[where] + row[where])[None] for row in further)]
    return Probe(of, pipeline, len(noise), torch.cat(rows))
