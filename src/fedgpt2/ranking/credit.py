"""What each contribution adds to the step, to first order, from inner products alone.

A step of length eta along -x lowers the loss on the scoring windows by eta <g, x> + O(eta²), where g is their gradient;
<g, x> / |x| compares contributions regardless of their length. By that measure a replay of the last aggregate beats
every honest miner in a quarter to a third of the rounds (docs/ranking.md). So the part of x in the span of the baseline
vectors b_1 … b_k, which any miner could send without work, is removed first. With P the projection onto that span

    x' = x - P x        added = <g, x'> / |x|        residual_fraction = |x'| / |x|

Adding baseline vectors to x leaves <g, x'> as it is. `added` is divided by the length of the whole x, so a replay with
a little work mixed in earns little: at most `residual_fraction` times |g|. Shortening x by baseline vectors raises
`added` to at most <g, x'> / |x'|. First-order effects are those of Koh and Liang, "Understanding black-box predictions
via influence functions" (2017), and Pruthi et al., "Estimating training data influence by tracing gradient descent"
(2020); to first order leave-one-out, Shapley and Banzhaf values agree with them.

Sums run in a fixed order, by IEEE operations on float64, so that a replay gives the same bits on every machine.

Letters: n contributions, k baseline vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgpt2.protocol.round_record import Products, RoundRecord
from fedgpt2.types import Hotkey

__all__ = ["RECENT", "Credit", "credits"]

Float64 = NDArray[np.float64]

RECENT = 2  # of one aggregate alone, 2 b_1 - b_2 or, under SGD, b_2 would count as work

# Share of a baseline vector's squared length. A vector with less outside the span of the others counts as part of it:
# inner products are exact to 2e-6 of the lengths, so the remainder would be mostly rounding error.
CUT_OFF = 1e-5


@dataclass(frozen=True)
class Credit:
    """First-order effect of a contribution, nats a token for a step of length 1."""

    raw: float  # <g, x> / |x|
    added: float  # <g, x'> / |x|
    residual_fraction: float  # |x'| / |x|

    @property
    def contribution(self) -> float:
        """`added`, but the whole effect where that raises the loss and is less."""
        return min(self.raw, self.added) if self.raw < 0.0 else self.added

    @property
    def mixed(self) -> float:
        """(raw + 2 contribution) / 3."""
        return (self.raw + 2.0 * self.contribution) / 3.0


def credits(record: RoundRecord) -> dict[Hotkey, Credit]:
    """The credit of each contribution that was measured and has a length; in the order of the hotkeys."""
    products = record.evidence.products
    norms = {miner.hotkey: miner.norm for miner in record.miners if miner.admitted and miner.norm}
    view = _View.of(products, norms) if products is not None else None
    if view is None:
        return {}
    residual, squares = _outside(view.rectangle(), view.k, view.norms**2)
    fraction = np.sqrt(np.maximum(squares, 0.0)) / view.norms
    raw, added = view.gradient / view.norms, residual[0, 1:] / view.norms
    return {
        hotkey: Credit(float(raw[i]), float(added[i]), min(1.0, float(fraction[i])))
        for i, hotkey in enumerate(view.miners)
    }


@dataclass(frozen=True)
class _View:
    """The inner products as arrays, miners in the order of their hotkeys."""

    miners: list[Hotkey]
    norms: Float64  # [n]
    gradient: Float64  # [n] <g, x>
    gradient_square: float
    gradient_baseline: Float64  # [k]
    contributions_baseline: Float64  # [n, k]
    baseline: Float64  # [k, k]

    @property
    def k(self) -> int:
        """Number of baseline vectors."""
        return len(self.gradient_baseline)

    @classmethod
    def of(cls, products: Products, norms: Mapping[Hotkey, float]) -> "_View | None":
        """None without contributions."""
        rows = {hotkey: i for i, hotkey in enumerate(products.miners)}
        miners = sorted(rows.keys() & norms.keys())
        chosen = [rows[hotkey] for hotkey in miners]
        if not miners:
            return None
        shape = (len(products.miners), len(products.baseline))
        return cls(
            miners=miners,
            norms=np.array([norms[hotkey] for hotkey in miners]),
            gradient=np.array(products.gradient)[chosen],
            gradient_square=products.gradient_norm**2,
            gradient_baseline=np.array(products.gradient_baseline, dtype=np.float64),
            contributions_baseline=np.array(products.contributions_baseline, dtype=np.float64).reshape(shape)[chosen],
            baseline=_symmetric(products.baseline_gram),
        )

    def rectangle(self) -> Float64:
        """Inner products of (b, g) with (b, g, x), [k + 1, k + 1 + n]."""
        g = np.concatenate([self.gradient_baseline, [self.gradient_square], self.gradient])
        b = np.concatenate([self.baseline, self.gradient_baseline[:, None], self.contributions_baseline.T], axis=1)
        return np.concatenate([b, g[None, :]])


def _symmetric(triangle: Sequence[Sequence[float]]) -> Float64:
    """The symmetric matrix of a lower triangle."""
    matrix = np.zeros((len(triangle), len(triangle)))
    for i, row in enumerate(triangle):
        matrix[i, : i + 1] = matrix[: i + 1, i] = row
    return matrix


def _outside(products: Float64, k: int, squares: Float64) -> tuple[Float64, Float64]:
    """Inner products of the residuals of all vectors outside the span of the first k; and |x'|² of the last n.

    Gaussian elimination with pivots: the Schur complement of the Gram matrix of b is the Gram matrix of the residuals.
    The pivot is the baseline vector with the largest remaining part of its length; one with less than CUT_OFF of its
    squared length left lies in the span of those before it, so equal or zero vectors change nothing.
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
