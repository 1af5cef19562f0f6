"""Stages and a rule, composed: what turns the admitted contributions of a round into one gradient.

Two families of rule, told apart by type: a `SpanRule` needs one pass over the contributions for their Gram matrix and
one for the weighted sum; a `CoordinatewiseRule` after stages needs the mixing weights first and then mixes and reduces
block by block. Neither ever holds an n x d matrix; contributions may be mapped from files.

Letters: n contributions, m vectors formed from them, d parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.clusters import clusters, one_vote
from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule, Median, TrimmedMean
from fedgpt2.aggregation.mean import weighted_mean
from fedgpt2.aggregation.rules import CenteredClipping, GeometricMedian, Krum, Mean, MultiKrum, SpanRule
from fedgpt2.aggregation.span import Float64, Span, gram
from fedgpt2.aggregation.stages import ARC, NNM, Bucketing, NormClip, Stage
from fedgpt2.errors import UsageError

__all__ = ["PIPELINES", "Aggregate", "Pipeline", "byzantine", "pipeline"]

_BLOCK = 1 << 16  # values a block of each row
SMALLEST = 4  # miners from which a robust rule has anything to go by


@dataclass(frozen=True)
class Aggregate:
    """How an aggregate was formed: each contribution's weight in it, and which of them are one computation."""

    weights: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]
    f: int


@dataclass(frozen=True)
class Pipeline:
    """Pre-aggregations, then a rule."""

    stages: tuple[Stage, ...]
    rule: SpanRule | CoordinatewiseRule

    def __call__(
        self, rows: Sequence[Float32[Tensor, " d"]], norms: Sequence[float], f: int, out: Float32[Tensor, " d"]
    ) -> Aggregate:
        """Aggregate `rows`, of norms `norms`, of which `f` may be hostile, into `out`.

        Near-identical rows have one vote together; the surplus votes of a group count as hostile ones found. Raises
        ValueError if there is no row or a norm is not finite.
        """
        span = gram(rows, norms)
        groups = clusters(span)
        f = max(0, f - (len(rows) - len(groups)))
        span = one_vote(span, groups)
        for stage in self.stages:
            span = stage(span, f)
        weights = self._reduce(span, rows, f, out)
        return Aggregate(tuple(float(w) for w in weights), tuple(map(tuple, groups)), f)

    def _reduce(self, span: Span, rows: Sequence[Tensor], f: int, out: Tensor) -> Float64:
        if isinstance(self.rule, Median | TrimmedMean):
            _reduce_blocks(self.rule, span.mixing, rows, f, out)
            inputs: Float64 = span.mixing.mean(0)
            return inputs  # an order statistic has no weights; this is each row's part in what it looks at
        weights: Float64 = self.rule(span, f) @ span.mixing  # type: ignore[operator]
        weighted_mean(rows, [float(w) for w in weights], out)
        return weights


def _reduce_blocks(rule: CoordinatewiseRule, mixing: Float64, rows: Sequence[Tensor], f: int, out: Tensor) -> None:
    """out = rule(mixing @ rows), block by block."""
    mix = torch.from_numpy(mixing).float()
    plain = len(mixing) == len(rows) and bool((mixing == np.eye(len(rows))).all())
    for start in range(0, out.numel(), _BLOCK):
        block = torch.stack([row[start : start + _BLOCK] for row in rows])
        out[start : start + _BLOCK] = rule.reduce(block if plain else mix @ block, f)


def byzantine(selected: int, refused: int) -> int:
    """f of a round: a quarter of the miners selected, fixed before answers come, less those refused for a fault."""
    return max(0, selected // 4 - refused)


_ROBUST = Pipeline((NormClip(), NNM()), GeometricMedian())

PIPELINES: Mapping[str, Pipeline] = MappingProxyType(
    {
        "default": _ROBUST,
        "clipped_mean": Pipeline((NormClip(),), Mean()),
        "median": Pipeline((), Median()),
        "trimmed_mean": Pipeline((), TrimmedMean()),
        "krum": Pipeline((), Krum()),
        "multi_krum": Pipeline((), MultiKrum()),
        "geometric_median": Pipeline((), GeometricMedian()),
        "centered_clipping": Pipeline((), CenteredClipping()),
        "nnm_trimmed_mean": Pipeline((NNM(),), TrimmedMean()),
        "nnm_median": Pipeline((NNM(),), Median()),
        "arc_nnm_trimmed_mean": Pipeline((ARC(), NNM()), TrimmedMean()),
        "bucketing_geometric_median": Pipeline((Bucketing(),), GeometricMedian()),
    }
)


def pipeline(name: str) -> Pipeline:
    """The pipeline called `name`. Raises UsageError."""
    if name not in PIPELINES:
        raise UsageError(f"--aggregation.rule {name}: no such rule; one of mean, {', '.join(PIPELINES)}")
    return PIPELINES[name]
