"""How many tokens ranking computes on in a round.

Half of the budget goes to the scoring gradient, half to audits. By default the budget is a tenth of the tokens assigned
to the admitted miners, and at most MOST: the study of the rule (docs/ranking.md) finds little beyond.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedgpt2.config import Ranking
from fedgpt2.errors import UsageError

__all__ = ["FEWEST", "MOST", "Budget", "budget", "check_ranking", "window_shape"]

_RULES = ("contribution", "off")

FEWEST = 3  # admitted miners below which nothing is measured: of two nobody can tell which one is right
MOST = 4096  # tokens a round by default
_SHARE = 10  # of the assigned tokens, one in so many by default
_SHORTEST = 16  # tokens of an audit


@dataclass(frozen=True)
class Budget:
    """Tokens of the scoring gradient, miners audited, and tokens of each audit; all 0 where nothing is measured."""

    gradient: int = 0
    audits: int = 0
    audit: int = 0


def check_ranking(rule: Ranking) -> None:
    """Raise UsageError for an unknown rule."""
    if rule.rule not in _RULES:
        raise UsageError(f"--ranking.rule {rule.rule}: no such rule; one of {', '.join(_RULES)}")


def budget(rule: Ranking, assigned: Sequence[int]) -> Budget:
    """The budget of a round whose admitted miners were assigned so many tokens each."""
    if rule.rule == "off" or len(assigned) < FEWEST:
        return Budget()
    tokens = rule.tokens or min(MOST, sum(assigned) // _SHARE)
    audits = min(rule.audits, len(assigned), tokens // 2 // _SHORTEST)
    audit = tokens // 2 // audits if audits else 0
    return Budget(tokens - audits * audit, audits, audit)


def window_shape(tokens: int, seq_len: int) -> tuple[int, int]:
    """As few windows as hold so many tokens, and the length to which each is cut so that they hold no more."""
    count = -(-tokens // seq_len)
    return count, tokens // max(1, count)
