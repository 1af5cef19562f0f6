"""Attack formulas of the literature: one hostile row from all honest gradients, `(honest, f) -> row`.

Letters: h honest gradients, f hostile miners, d parameters.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.simulate.attacks.gradient_stats import moments

__all__ = ["alie", "ipm", "mimic", "min_max", "minus_mean", "search", "sign_flip", "z_max"]

_COARSE = 0.6  # share of a search's evaluations that is spread over the whole range; the others refine the best one
_HALVINGS = 20  # of an interval: six digits
_MARGIN = 1e-5  # relative rounding error of a distance


def minus_mean(honest: Float32[Tensor, "h d"], f: int) -> Float32[Tensor, " d"]:
    """-mean.

    Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation", 2019, arXiv 1811.03761.
    """
    return -honest.mean(0)


def sign_flip(honest: Float32[Tensor, "h d"], f: int) -> Float32[Tensor, " d"]:
    """-(h / f + 1) mean: the plain mean of all rows then points the other way.

    `minus_mean` would only halve that mean, which does not change the steps of Adam.
    """
    return ipm(honest, f, strength=len(honest) / f + 1.0)


def ipm(honest: Float32[Tensor, "h d"], f: int, strength: float = 0.5) -> Float32[Tensor, " d"]:
    """Inner product manipulation: -strength mean.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", 2019,
    arXiv 1903.03936: weak ones (0.1, 0.5) are too near for distances to exclude, strong ones (100) turn means.
    """
    return honest.mean(0) * -strength


def alie(honest: Float32[Tensor, "h d"], f: int, strength: float | None = None) -> Float32[Tensor, " d"]:
    """A little is enough: mean + strength std, coordinate by coordinate; negative strengths point the other way.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", 2019,
    arXiv 1902.06156. By default the paper's z_max: the quantile of a normal variable at (n - f - s) / (n - f), where
    s = floor(n / 2 + 1) - f honest miners complete a majority.
    """
    of = moments(honest)
    return of.mean + (z_max(len(honest), f) if strength is None else strength) * of.std


def min_max(honest: Float32[Tensor, "h d"], f: int) -> Float32[Tensor, " d"]:
    """mean - gamma std, with the largest gamma at which no honest gradient is further away than two are apart.

    Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
    Learning", NDSS 2021 (AGR-agnostic, inverse standard deviation).
    """
    of = moments(honest)
    limit = float(of.honest.distances().max()) * (1.0 - _MARGIN)
    low, high = 0.0, 2.0 * limit / max(float(of.std.norm()), torch.finfo(torch.float32).tiny)
    each = np.eye(of.h, of.span.m)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reaches = of.span.mixed(each - of.point(1.0, -middle)).norms().max() <= limit
        low, high = (middle, high) if reaches else (low, middle)
    return of.mean - low * of.std


def mimic(honest: Float32[Tensor, "h d"], f: int) -> Float32[Tensor, " d"]:
    """The honest gradient that is furthest out along the direction in which honest gradients differ most.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022,
    arXiv 2006.09365; here the direction is exact instead of estimated over rounds.
    """
    h = len(honest)
    _, directions = np.linalg.eigh(moments(honest).span.inner[1 : h + 1, 1 : h + 1])
    return honest[int(np.abs(directions[:, -1]).argmax())]


def z_max(h: int, f: int) -> float:
    """The strength of `alie` beyond which enough honest values for a majority are still expected."""
    n = h + f
    supporters = n // 2 + 1 - f
    share = min(max((h - supporters) / h, 1e-3), 1 - 1e-3)
    return NormalDist().inv_cdf(share)


def search(damage: Callable[[float], float], evaluations: int, between: tuple[float, float]) -> tuple[float, float]:
    """The most damage found, and its strength, among `evaluations` strengths spaced by ratios over a range.

    A coarse search comes first; the remaining evaluations refine its best. Among equal strengths the weakest is
    chosen, since a clipping rule makes all strong ones equal.
    """
    coarse = max(2, round(_COARSE * evaluations))
    step = (between[1] / between[0]) ** (1.0 / (coarse - 1))
    tried = {x: damage(x) for x in (between[0] * step**i for i in range(coarse))}
    while len(tried) < evaluations:
        best, step = _worst(tried), step**0.5
        for x in (best * step, best / step)[: evaluations - len(tried)]:
            tried[x] = damage(x)
    x = _worst(tried)
    return tried[x], x


def _worst(tried: Mapping[float, float]) -> float:
    most = max(tried.values())
    return min(x for x, done in tried.items() if done >= most * (1.0 - _MARGIN))
