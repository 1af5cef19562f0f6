"""The two kinds of aggregation rule: the mean by tokens, and pipelines of stages and a robust rule.

A `SpanRule` reads the contributions once for their Gram matrix and once for the weighted sum. A `CoordinatewiseRule`
after stages needs their mixing weights first; then vectors are mixed and reduced block by block. Neither holds an n x d
matrix, and contributions may be mapped from files. Only a user's plain function is given all values at once.

Letters: n contributions, m vectors formed from them, d parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.clusters import clusters, one_vote
from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule, PlainFunction
from fedgpt2.aggregation.gram import gram, norm
from fedgpt2.aggregation.mean import token_weights, weighted_mean
from fedgpt2.aggregation.rules import SpanRule
from fedgpt2.aggregation.span import Float64, Span
from fedgpt2.aggregation.stages import Stage

__all__ = ["Aggregate", "Pipeline", "Rule", "TokenMean"]

_VALUES = 1 << 20  # values of a block, all rows together
_LARGEST_NORM = 1e36  # norms beyond this count as not finite: sums of such rows would overflow fp32


@dataclass(frozen=True)
class Aggregate:
    """How an aggregate was formed.

    `weights`: each contribution's weight in it (for a coordinatewise rule its share of the rule's input), 0 for one
    left out. `groups`: indices of near-identical contributions, which count as one; those left out are in no group.
    `f`: how many of the rest may still be hostile. `gram`: inner products of the contributions, [n, n], NaN for those
    left out; None where they were not computed.
    """

    weights: tuple[float, ...]
    groups: tuple[tuple[int, ...], ...]
    f: int
    gram: Float64 | None = field(default=None, compare=False)


@runtime_checkable
class Rule(Protocol):
    """An aggregation rule: what `--aggregation.rule` names."""

    def __call__(
        self,
        rows: Sequence[Float32[Tensor, " d"]],
        norms: Sequence[float] | None,
        f: int,
        out: Float32[Tensor, " d"],
        seed: int = 0,
        tokens: Sequence[int] | None = None,
    ) -> Aggregate:
        """Write the aggregate of `rows`, of which `f` may be hostile, into `out`.

        `norms`: the rows' Euclidean norms, where they are known. `seed`: for stages that draw; it is new every round
        and unknown until all contributions are in. `tokens`: the tokens assigned for each row; only the mean uses them.
        """
        ...


@dataclass(frozen=True)
class TokenMean:
    """The mean weighted by assigned tokens; breakdown point 0, a single hostile miner controls it."""

    def __call__(
        self,
        rows: Sequence[Float32[Tensor, " d"]],
        norms: Sequence[float] | None,
        f: int,
        out: Float32[Tensor, " d"],
        seed: int = 0,
        tokens: Sequence[int] | None = None,
    ) -> Aggregate:
        """See `Rule`; without `tokens` all rows weigh the same. Every row is a group of its own."""
        weights = token_weights([1] * len(rows) if tokens is None else tokens)
        weighted_mean(rows, weights, out)
        return Aggregate(tuple(weights), tuple((i,) for i in range(len(rows))), 0)


@dataclass(frozen=True)
class Pipeline:
    """Pre-aggregation stages, then a rule."""

    stages: tuple[Stage, ...]
    rule: SpanRule | CoordinatewiseRule

    def __call__(
        self,
        rows: Sequence[Float32[Tensor, " d"]],
        norms: Sequence[float] | None,
        f: int,
        out: Float32[Tensor, " d"],
        seed: int = 0,
        tokens: Sequence[int] | None = None,
    ) -> Aggregate:
        """See `Rule`.

        A row whose norm is not finite, or above 1e36, is left out and counted as one of the f hostile ones.
        Near-identical rows get one vote together and leave f as it is: too small an f breaks the guarantee, too large
        a one only costs accuracy.

        Raises ValueError if no row is left, or if a row holds NaN or Inf although its given norm is finite.
        """
        lengths = [norm(row) for row in rows] if norms is None else norms
        kept = [i for i, length in enumerate(lengths) if length <= _LARGEST_NORM]
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
        """Form the aggregate; returns the weights of the scaled rows, [n]."""
        if isinstance(self.rule, CoordinatewiseRule):
            _reduce_blocks(self.rule, span, rows, f, out)
            inputs: Float64 = span.mixing.mean(0)
            return inputs
        weights: Float64 = self.rule.weights(span, f) @ span.mixing
        weighted_mean(rows, [float(weight) for weight in weights], out, [float(scale) for scale in span.scales])
        return weights


def _reduce_blocks(rule: CoordinatewiseRule, span: Span, rows: Sequence[Tensor], f: int, out: Tensor) -> None:
    """out = rule(mixing @ rows), block by block; in one block where the rule must see all parameters."""
    unmixed = span.m == len(rows) and bool((span.mixing == np.diag(1.0 / span.scales)).all())
    mixing, scales = (torch.from_numpy(array).float() for array in (span.mixing, span.scales[:, None]))
    size = out.numel() if isinstance(rule, PlainFunction) else max(1, _VALUES // len(rows))
    for parts in zip(*(torch.split(tensor, size) for tensor in (out, *rows)), strict=True):
        block = torch.stack(parts[1:])
        parts[0].copy_(rule.reduce(block if unmixed else mixing @ (block * scales), f))
