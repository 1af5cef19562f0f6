"""Stages and a rule, composed: what turns the admitted contributions of a round into one gradient.

Two families of rule, told apart by type: a `SpanRule` needs one pass over the contributions for their Gram matrix and
one for the weighted sum; a `CoordinatewiseRule` after stages needs the mixing weights first and then mixes and reduces
block by block. Neither ever holds an n x d matrix; contributions may be mapped from files.

Letters: n contributions, m vectors formed from them, d parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.clusters import clusters, one_vote
from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule, Median, TrimmedMean
from fedgpt2.aggregation.gram import gram, norm
from fedgpt2.aggregation.mean import weighted_mean
from fedgpt2.aggregation.rules import CenteredClipping, GeometricMedian, Krum, Mean, MultiKrum, SpanRule
from fedgpt2.aggregation.span import Float64, Span
from fedgpt2.aggregation.stages import ARC, NNM, Bucketing, NormClip, Stage
from fedgpt2.errors import UsageError

__all__ = ["PIPELINES", "SMALLEST", "Aggregate", "Pipeline", "byzantine", "enough", "pipeline", "smallest"]

_VALUES = 1 << 20  # of all rows of a block together
_LONGEST = 1e36  # norms beyond this count as not finite: sums of such rows would not fit fp32
SMALLEST = 4  # miners from which a robust rule has anything to go by


@dataclass(frozen=True)
class Aggregate:
    """How an aggregate was formed.

    `weights`: each contribution's weight in it (for a coordinatewise rule its part in what the rule looked at), 0 for
    one left out. `groups`: which contributions are one computation; those left out are in none. `f`: how many of the
    rest might still have been hostile. `gram`: inner products of the contributions, [n, n], NaN for those left out;
    None where they were not needed.
    """

    weights: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]
    f: int
    gram: Float64 | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Pipeline:
    """Pre-aggregations, then a rule."""

    stages: tuple[Stage, ...]
    rule: SpanRule | CoordinatewiseRule

    def __call__(
        self,
        rows: Sequence[Float32[Tensor, " d"]],
        norms: Sequence[float] | None,
        f: int,
        out: Float32[Tensor, " d"],
        seed: int = 0,
    ) -> Aggregate:
        """Aggregate `rows`, of which `f` may be hostile, into `out`.

        `norms` are the rows' own, where the caller has them. A row whose norm is not finite, or beyond 1e36, is left
        out and was one of the f. Near-identical rows have one vote together; that spends nothing of f, for too small
        an f costs everything and too large a one costs little. `seed` is for stages that draw: another one every
        round, not known before the answers are in.

        Raises ValueError if no row is left, or a row holds NaN or Inf and its norm does not say so.
        """
        lengths = [norm(row) for row in rows] if norms is None else norms
        kept = [i for i, length in enumerate(lengths) if length <= _LONGEST]
        f = max(0, f - (len(rows) - len(kept)))
        chosen = [rows[i] for i in kept]
        contributions = gram(chosen, [lengths[i] for i in kept])
        groups = clusters(contributions)
        span = one_vote(contributions, groups)
        for stage in self.stages:
            span = stage(span, f, seed)
        weights = np.zeros(len(rows))
        weights[kept] = self._reduce(span, chosen, f, out) * contributions.scales
        members = tuple(tuple(kept[i] for i in group) for group in groups)
        products = np.full((len(rows), len(rows)), np.nan)
        products[np.ix_(kept, kept)] = contributions.products()
        return Aggregate(tuple(float(weight) for weight in weights), members, f, products)

    def _reduce(self, span: Span, rows: Sequence[Tensor], f: int, out: Tensor) -> Float64:
        """Form the aggregate; the weights of the scaled rows, [n]."""
        if isinstance(self.rule, CoordinatewiseRule):
            _reduce_blocks(self.rule, span, rows, f, out)
            inputs: Float64 = span.mixing.mean(0)
            return inputs
        weights: Float64 = self.rule(span, f) @ span.mixing
        weighted_mean(rows, [float(weight) for weight in weights], out, [float(scale) for scale in span.scales])
        return weights


def _reduce_blocks(rule: CoordinatewiseRule, span: Span, rows: Sequence[Tensor], f: int, out: Tensor) -> None:
    """out = rule(mixing @ rows), block by block."""
    untouched = span.m == len(rows) and bool((span.mixing == np.diag(1.0 / span.scales)).all())
    mixing, scales = (torch.from_numpy(array).float() for array in (span.mixing, span.scales[:, None]))
    size = max(1, _VALUES // len(rows))
    for parts in zip(*(torch.split(tensor, size) for tensor in (out, *rows)), strict=True):
        block = torch.stack(parts[1:])
        parts[0].copy_(rule.reduce(block if untouched else mixing @ (block * scales), f))


def byzantine(selected: int, refused: int, silent: int = 0, unheard: int = 0) -> int:
    """f of a round: a quarter of the miners selected, fixed before answers come, less those refused for a fault.

    Of the `silent`, who were there and gave nothing, only so many are taken for liars as it needs to be enough: for
    each that is honest f is one lower than the liars that may be among the rest. None are where the admitted are fewer
    than half; they might all be liars. The `unheard`, by no fault of theirs, are gone.
    """
    f = max(0, selected // 4 - refused)
    admitted = selected - refused - silent - unheard
    if 2 * admitted < selected - refused:
        return f
    return max(0, f - silent, min(f, (admitted - 1) // 3))


def smallest(f: int) -> int:
    """Contributions it takes where f may be hostile."""
    return 3 * f + 1


def enough(admitted: int, f: int) -> bool:
    """Whether so many contributions, of which f may be hostile, can be aggregated at all; if not, keep the weights."""
    return admitted >= smallest(f)


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
