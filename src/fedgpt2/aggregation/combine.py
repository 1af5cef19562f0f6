"""Which rule a round is aggregated by, and what it may assume of the miners.

Letters: n contributions, d parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.mean import token_weights, weighted_mean
from fedgpt2.aggregation.pipeline import PIPELINES, SMALLEST, Aggregate, byzantine, enough, pipeline, smallest
from fedgpt2.errors import UsageError

__all__ = ["RULES", "Terms", "check_rule", "combine", "quorum", "terms"]

RULES = ("mean", *PIPELINES)


@dataclass(frozen=True)
class Terms:
    """What a round is aggregated by: the rule, how many of the admitted may be hostile, how many must be there."""

    rule: str
    f: int

    def met_by(self, admitted: int) -> bool:
        """Whether so many contributions are enough."""
        return admitted > 0 and enough(admitted, self.f)


def check_rule(rule: str) -> None:
    """Raise UsageError unless there is a rule of this name."""
    if rule not in RULES:
        raise UsageError(f"--aggregation.rule {rule}: no such rule; one of {', '.join(RULES)}")


def terms(rule: str, asked: int, refused: int, silent: int = 0, unheard: int = 0) -> Terms:
    """The terms of a round in which `asked` miners were given work; of what became of the others see `byzantine`.

    `default` needs SMALLEST miners to have anything to compare; with fewer it is clipped_mean. The plain mean takes
    everybody for honest.
    """
    if rule == "default" and asked < SMALLEST:
        return Terms("clipped_mean", 0)
    return Terms(rule, 0 if rule == "mean" else byzantine(asked, refused, silent, unheard))


def quorum(rule: str, asked: int, share: float) -> int:
    """Answers after which a round need not wait for the rest: a share of those asked, and as many as the rule needs."""
    enough_answers = math.ceil(round(share * asked, 6))  # 0.28 of 25 is 7, and not the 7.000000000000001 of floats
    return max(enough_answers, smallest(terms(rule, asked, 0).f))


def combine(
    by: Terms,
    rows: Sequence[Float32[Tensor, " d"]],
    norms: Sequence[float],
    tokens: Sequence[int],
    out: Float32[Tensor, " d"],
    seed: int,
) -> Aggregate:
    """Form the aggregate of `rows` in `out`. `tokens` are those assigned; only the mean weighs by them."""
    if by.rule != "mean":
        return pipeline(by.rule)(rows, norms, by.f, out, seed)
    weights = token_weights(tokens)
    weighted_mean(rows, weights, out)
    return Aggregate(tuple(weights), tuple((i,) for i in range(len(rows))), 0)
