"""The rule of a round: how many contributions may be hostile, how many are needed, and the call of the rule.

Letters: n contributions, f of them hostile, d parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.pipeline import Aggregate, TokenMean
from fedgpt2.aggregation.registry import FLAG, RULES
from fedgpt2.errors import SetupError
from fedgpt2.registry import plugin_errors

__all__ = ["SMALLEST", "Terms", "byzantine", "check_rule", "combine", "enough", "quorum", "smallest", "terms"]

SMALLEST = 4  # miners from which a robust rule can tell anything: 3 f + 1 with f = 1


@dataclass(frozen=True)
class Terms:
    """The rule of a round and f, the number of admitted contributions that may be hostile."""

    rule: str
    f: int

    def met_by(self, admitted: int) -> bool:
        """Whether so many contributions are enough."""
        return admitted > 0 and enough(admitted, self.f)


def check_rule(rule: str) -> None:
    """Raise UsageError, one line, unless there is a rule of this name."""
    RULES.get(rule, FLAG)


def terms(rule: str, asked: int, refused: int, silent: int = 0, unreachable: int = 0) -> Terms:
    """The terms of a round in which `asked` miners got orders; `byzantine` explains the other counts.

    `default` needs SMALLEST miners to compare; with fewer it is `clipped_mean`. The plain mean takes everybody for
    honest.
    """
    if rule == "default" and asked < SMALLEST:
        return Terms("clipped_mean", 0)
    if isinstance(RULES.get(rule, FLAG), TokenMean):
        return Terms(rule, 0)
    return Terms(rule, byzantine(asked, refused, silent, unreachable))


def quorum(rule: str, asked: int, share: float) -> int:
    """Contributions after which a round stops waiting: a share of those asked, and no fewer than the rule needs."""
    wanted = math.ceil(round(share * asked, 6))  # rounded first: 0.28 * 25 is 7.000000000000001 in floats
    return max(wanted, smallest(terms(rule, asked, 0).f))


def byzantine(asked: int, refused: int, silent: int = 0, unreachable: int = 0) -> int:
    """f of a round: a quarter of the miners asked, fixed before they answer, less those refused for a fault of theirs.

    `silent` miners held the state and sent nothing. Each one counted as hostile lowers f by one, so only as many are
    counted as the quorum, admitted >= 3 f + 1, requires: an honest silent miner would lower f wrongly. None is counted
    where fewer than half were admitted, since all of these may be hostile. `unreachable` miners leave f as it is.
    """
    f = max(0, asked // 4 - refused)
    admitted = asked - refused - silent - unreachable
    if 2 * admitted < asked - refused:
        return f
    return max(0, f - silent, min(f, (admitted - 1) // 3))


def smallest(f: int) -> int:
    """The fewest contributions that can be aggregated where f may be hostile: 3 f + 1."""
    return 3 * f + 1


def enough(admitted: int, f: int) -> bool:
    """Whether `admitted` contributions, f of them perhaps hostile, can be aggregated; else the weights stay."""
    return admitted >= smallest(f)


def combine(
    by: Terms,
    rows: Sequence[Float32[Tensor, " d"]],
    norms: Sequence[float],
    tokens: Sequence[int],
    out: Float32[Tensor, " d"],
    seed: int,
) -> Aggregate:
    """Form the aggregate of `rows` in `out`; `tokens` are those assigned for each.

    Raises SetupError, one line, where a user's own rule fails.
    """
    rule = RULES.get(by.rule, FLAG)
    if ":" not in by.rule:
        return rule(rows, norms, by.f, out, seed, tokens)
    with plugin_errors(lambda what: SetupError(f"{FLAG} {by.rule}: {what}")):
        return rule(rows, norms, by.f, out, seed, tokens)
