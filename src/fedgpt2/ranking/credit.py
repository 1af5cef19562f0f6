"""What each contribution adds to the step, to first order, from inner products alone.

A step of length eta along x lowers the loss on the scoring windows by eta <g, x> + O(eta²), g their gradient; over
|x|, so that no one gains by length. Scored so, a replay of an aggregate beats every honest miner in a quarter to a
third of the rounds (docs/ranking.md). So what anybody could have for free is taken out first. With b_1 … b_k the free
vectors and P the projection onto what they span,

    x' = x - P x        added = <g, x'> / |x|        own = |x'| / |x|

Free vectors added to x change nothing of <g, x'>. `added` is divided by the length of the whole x, so that a replay in
disguise (P x large, x' a little) is worth little: no more than `own` of |g|. Who shortens x by free vectors raises it,
at most to <g, x'> / |x'|. The first-order view of a gradient's worth is that of Koh and Liang, "Understanding black-box
predictions via influence functions" (2017), and of Pruthi et al., "Estimating training data influence by tracing
gradient descent" (2020); to first order leave-one-out, Shapley and Banzhaf values agree.

Sums here run in a fixed order, by plain IEEE operations on float64, so that a replay gives the same bits anywhere.

Letters: n contributions, k free vectors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgpt2.config import Ranking
from fedgpt2.errors import UsageError
from fedgpt2.ranking.evidence import KINDS, Evidence, Free, Products
from fedgpt2.types import Hotkey

__all__ = ["SCORES", "Credit", "check_rule", "credits", "leave_one_out"]

Float64 = NDArray[np.float64]

SCORES = ("proven", "projected", "raw", "leave_one_out", "losses")

# Of a free vector's squared length: with less than this left outside of the others' span it counts as spanned.
# Inner products are right to 2e-6 of the lengths, so what is left of it would be mostly their error.
CUT_OFF = 1e-5


@dataclass(frozen=True)
class Credit:
    """What a contribution was found to be worth, nats a token a unit of step; `own` as a part of its length."""

    raw: float  # <g, x> / |x|
    added: float  # <g, x'> / |x|
    own: float  # |x'| / |x|

    @property
    def counted(self) -> float:
        """What is added, or the whole effect where that is a harm and less: what raises the loss adds nothing."""
        return min(self.raw, self.added) if self.raw < 0.0 else self.added

    @property
    def mixed(self) -> float:
        """A third of the whole effect and two of what counts as added."""
        return (self.raw + 2.0 * self.counted) / 3.0


def check_rule(rule: Ranking) -> None:
    """Raise UsageError unless the settings name a score and a basis that exist."""
    if rule.score not in SCORES:
        raise UsageError(f"--ranking.score {rule.score}: no such score; one of {', '.join(SCORES)}")
    for kind in _kinds(rule):
        if kind not in KINDS:
            raise UsageError(
                f"--ranking.basis {rule.basis}: {kind} is nothing; none, or {', '.join(KINDS)} joined by +"
            )


def credits(evidence: Evidence, rule: Ranking) -> dict[Hotkey, Credit]:
    """The credit of each admitted contribution that was measured and has a length; in the order of their hotkeys."""
    norms = _norms(evidence)
    view = _View.of(evidence.products, norms, rule) if evidence.products is not None else None
    if view is None:
        return {}
    rest, squares = _outside(view.rectangle(), view.k, view.norms**2)
    own = np.sqrt(np.maximum(squares, 0.0)) / view.norms
    raw, added = view.gradient / view.norms, rest[0, 1:] / view.norms
    return {
        hotkey: Credit(float(raw[i]), float(added[i]), min(1.0, float(own[i]))) for i, hotkey in enumerate(view.miners)
    }


def leave_one_out(evidence: Evidence, rule: Ranking, keepers: Sequence[Hotkey]) -> dict[Hotkey, float]:
    """What the mean direction of the round loses when one contribution is left out of it.

    With u_i = x'_i / |x_i|, over the `keepers` (one a cluster), and m_S the sum of u over S,

        U(S) = <g', m_S> / |m_S|        value_i = U(all) - U(all but i)

    the drop in loss of a step of length one along the mean, so two that say the same are worth less than two that do
    not. Empty where the evidence holds no Gram matrix. Cook, "Detection of influential observation" (1977).
    """
    norms = {hotkey: norm for hotkey, norm in _norms(evidence).items() if hotkey in keepers}
    if evidence.products is None or evidence.products.gram is None:
        return {}
    view = _View.of(evidence.products, norms, rule)
    if view is None:
        return {}
    rest, _ = _outside(view.square(), view.k, view.norms**2)
    gains = rest[0, 1:] / view.norms
    overlaps = rest[1:, 1:] / np.multiply.outer(view.norms, view.norms)
    everyone = range(len(view.miners))
    whole = _usefulness(gains, overlaps, list(everyone))
    return {
        hotkey: whole - _usefulness(gains, overlaps, [j for j in everyone if j != i])
        for i, hotkey in enumerate(view.miners)
    }


def _usefulness(gains: Float64, overlaps: Float64, members: list[int]) -> float:
    square = math.fsum(overlaps[np.ix_(members, members)].ravel().tolist())
    # what rounding of the inner products leaves of a sum that cancels is no direction
    if square <= CUT_OFF * len(members):
        return 0.0
    return math.fsum(gains[members].tolist()) / math.sqrt(square)


def _norms(evidence: Evidence) -> dict[Hotkey, float]:
    """Lengths of the admitted that have one."""
    return {Hotkey(m.hotkey): m.norm for m in evidence.miners if m.admitted and m.norm}


@dataclass(frozen=True)
class _View:
    """The inner products that a rule looks at, miners in the order of their hotkeys."""

    miners: list[Hotkey]
    norms: Float64  # [n]
    gradient: Float64  # [n] <g, x>
    gradient_square: float
    gradient_free: Float64  # [k]
    contributions_free: Float64  # [n, k]
    free: Float64  # [k, k]
    gram: Float64 | None  # [n, n]

    @property
    def k(self) -> int:
        """Free vectors taken out."""
        return len(self.gradient_free)

    @classmethod
    def of(cls, products: Products, norms: Mapping[Hotkey, float], rule: Ranking) -> "_View | None":
        """None when nobody is left to look at."""
        places = {Hotkey(hotkey): i for i, hotkey in enumerate(products.miners)}
        miners = sorted(places.keys() & norms.keys())
        chosen = [places[hotkey] for hotkey in miners]
        basis = [i for i, free in enumerate(products.free) if _counts(free, rule)]
        if not miners:
            return None
        return cls(
            miners=miners,
            norms=np.array([norms[hotkey] for hotkey in miners]),
            gradient=np.array(products.gradient)[chosen],
            gradient_square=products.gradient_norm**2,
            gradient_free=np.array(products.gradient_free, dtype=np.float64)[basis],
            contributions_free=np.array(products.contributions_free, dtype=np.float64)[np.ix_(chosen, basis)],
            free=_mirrored(products.free_gram)[np.ix_(basis, basis)],
            gram=None if products.gram is None else _mirrored(products.gram)[np.ix_(chosen, chosen)],
        )

    def rectangle(self) -> Float64:
        """Inner products of (b, g) with (b, g, x), [k + 1, k + 1 + n]."""
        g = np.concatenate([self.gradient_free, [self.gradient_square], self.gradient])
        b = np.concatenate([self.free, self.gradient_free[:, None], self.contributions_free.T], axis=1)
        return np.concatenate([b, g[None, :]])

    def square(self) -> Float64:
        """Inner products of (b, g, x) with each other, [k + 1 + n, k + 1 + n]."""
        among = np.zeros((0, 0)) if self.gram is None else self.gram
        x = np.concatenate([self.contributions_free, self.gradient[:, None], among], axis=1)
        return np.concatenate([self.rectangle(), x])


def _counts(free: Free, rule: Ranking) -> bool:
    """Whether the rule takes this vector for free."""
    return free.kind in _kinds(rule) and free.age <= rule.recent


def _kinds(rule: Ranking) -> tuple[str, ...]:
    return () if rule.basis == "none" else tuple(rule.basis.split("+"))


def _mirrored(triangle: Sequence[Sequence[float]]) -> Float64:
    """The symmetric matrix of a lower triangle."""
    matrix = np.zeros((len(triangle), len(triangle)))
    for i, row in enumerate(triangle):
        matrix[i, : i + 1] = matrix[: i + 1, i] = row
    return matrix


def _outside(products: Float64, k: int, squares: Float64) -> tuple[Float64, Float64]:
    """Inner products of what is left of all vectors outside the span of the first k; and the last n's |x'|².

    Elimination with pivots: the Schur complement of the Gram matrix of b is the Gram matrix of the remainders. The
    free vector with the largest part of its length left comes next; one with less than CUT_OFF of its squared length
    left is spanned by those before it and changes nothing, so equal or empty ones do no harm.
    """
    lengths = np.diagonal(products)[:k].copy()
    waiting = [i for i in range(k) if lengths[i] > 0.0]
    while waiting:
        pivot = max(waiting, key=lambda i: float(products[i, i] / lengths[i]))
        left = products[pivot, pivot]
        if left <= CUT_OFF * lengths[pivot]:
            break
        row = products[pivot].copy()
        products = products - np.multiply.outer(products[:, pivot].copy(), row / left)
        squares = squares - row[k + 1 :] ** 2 / left
        waiting.remove(pivot)
    return products[k:, k:], squares
