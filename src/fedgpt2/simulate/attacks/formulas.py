"""Attack formulas of the literature: f hostile rows from all honest gradients, `(honest, f, rng, …) -> hostile`.

All but `opt_ipm` and `opt_alie` give f equal rows, which get one vote together; `apart` adds noise enough for f votes.

Letters: h honest gradients, f hostile ones, d parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.simulate.attacks.gradient_stats import moments

__all__ = [
    "Defence",
    "alie",
    "apart",
    "ipm",
    "mimic",
    "min_max",
    "opt_alie",
    "opt_ipm",
    "search",
    "sign_flip",
    "z_max",
]

Defence = Callable[[Float32[Tensor, "n d"], int], Float32[Tensor, " d"]]  # rows, f -> their aggregate

_EVALUATIONS = 20  # of the defence, per line search
_COARSE = 0.6  # share of them that is spread over the whole range; the others refine the best one
_HALVINGS = 20  # of an interval: six digits
_MARGIN = 1e-5  # relative rounding error of a distance


def sign_flip(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, "f d"]:
    """-mean.

    Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation", 2019, arXiv 1811.03761.
    """
    return _same(-honest.mean(0), f)


def ipm(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator, strength: float = 0.5) -> Float32[Tensor, "f d"]:
    """Inner product manipulation: -strength mean.

    Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", 2019,
    arXiv 1903.03936: weak ones (0.1, 0.5) slip past rules of distance, strong ones (100) turn means.
    """
    return _same(honest.mean(0) * -strength, f)


def alie(
    honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator, strength: float | None = None
) -> Float32[Tensor, "f d"]:
    """A little is enough: mean + strength std, coordinate by coordinate; negative strengths aim the other way.

    Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", 2019,
    arXiv 1902.06156. By default the paper's z_max: the quantile of a normal variable at
    (n - f - s) / (n - f), s = floor(n / 2 + 1) - f supporters being needed for a majority.
    """
    of = moments(honest)
    return _same(of.mean + (z_max(len(honest), f) if strength is None else strength) * of.std, f)


def opt_ipm(
    honest: Float32[Tensor, "h d"],
    f: int,
    rng: torch.Generator,
    defence: Defence,
    evaluations: int = _EVALUATIONS,
) -> Float32[Tensor, "f d"]:
    """`ipm` of the strength that moves the aggregate of `defence` furthest from the honest mean, sent `apart`.

    After González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL", 2025, arXiv 2505.24802. Their search doubles the
    strength while damage grows and so misses weak strengths that robust rules let through; here a coarse search over
    the range comes first.
    """
    mean = honest.mean(0)
    search = _Search(honest, f, rng, defence)
    return search.furthest(lambda strength: mean * -strength, evaluations, between=(0.1, 100.0))[1]


def opt_alie(
    honest: Float32[Tensor, "h d"],
    f: int,
    rng: torch.Generator,
    defence: Defence,
    evaluations: int = _EVALUATIONS,
) -> Float32[Tensor, "f d"]:
    """`alie` of the strength and sign that move the aggregate furthest; see `opt_ipm` for the search."""
    of = moments(honest)
    mean, std = of.mean, of.std
    search = _Search(honest, f, rng, defence)
    up = search.furthest(lambda strength: mean + strength * std, evaluations // 2, between=(0.25, 8.0))
    down = search.furthest(lambda strength: mean - strength * std, evaluations - evaluations // 2, between=(0.25, 8.0))
    return max(up, down, key=lambda found: found[0])[1]


def min_max(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, "f d"]:
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
    return _same(of.mean - low * of.std, f)


def mimic(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, "f d"]:
    """The honest gradient that is furthest out along the direction in which honest gradients differ most.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022,
    arXiv 2006.09365; here the direction is exact instead of estimated over rounds.
    """
    h = len(honest)
    _, directions = np.linalg.eigh(moments(honest).span.inner[1 : h + 1, 1 : h + 1])
    return _same(honest[int(np.abs(directions[:, -1]).argmax())], f)


def apart(
    hostile: Float32[Tensor, "f d"], honest: Float32[Tensor, "h d"], rng: torch.Generator, by: float = 0.25
) -> Float32[Tensor, "f d"]:
    """`hostile` with noise `by` times as long as each row or as a typical honest one, whichever is shorter.

    Enough noise to be in no cluster, too little to change the effect of the rows.
    """
    lengths: Tensor = hostile.norm(dim=1, keepdim=True).clamp(max=_typical(honest))
    return hostile + _noise(len(hostile), hostile.shape[1], rng) * (by * lengths)


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


def _same(row: Tensor, f: int) -> Tensor:
    return row.expand(f, -1).clone()


def _noise(f: int, d: int, rng: torch.Generator) -> Tensor:
    """f rows of independent noise, each about 1 long."""
    noise: Tensor = torch.randn(f, d, generator=rng)
    return noise.div_(max(d, 1) ** 0.5)


def _typical(honest: Tensor) -> float:
    return float(honest.norm(dim=1).median())


@dataclass(frozen=True)
class _Search:
    """Trials of a defence that is known as a function."""

    honest: Tensor
    f: int
    rng: torch.Generator
    defence: Defence

    def furthest(
        self, row: Callable[[float], Tensor], evaluations: int, between: tuple[float, float]
    ) -> tuple[float, Tensor]:
        """The most damage of f rows near row(x) for x in a range, and those rows."""
        sent: dict[float, Tensor] = {}

        def damage(x: float) -> float:
            done, sent[x] = self._trial(row(x))
            return done

        done, x = search(damage, evaluations, between)
        return done, sent[x]

    def _trial(self, row: Tensor) -> tuple[float, Tensor]:
        """Distance of the aggregate from the honest mean, and the hostile rows."""
        hostile = apart(_same(row, self.f), self.honest, self.rng)
        aggregate = self.defence(torch.cat([self.honest, hostile]), self.f)
        return float((aggregate - self.honest.mean(0)).norm()), hostile
