"""What f liars who know every honest gradient, and each other, can send instead of their own.

Pure functions `(honest, f, rng, …) -> hostile`, but for what they draw from rng. All but `gaussian`, `opt_ipm` and
`opt_alie` give f equal rows, which count as one vote; liars who want all of theirs send them `apart`.

Letters: h honest gradients, f hostile ones, d parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.simulate.attacks.gradient_stats import moments

__all__ = [
    "ATTACKS",
    "Attack",
    "Defence",
    "alie",
    "apart",
    "gaussian",
    "ipm",
    "mimic",
    "min_max",
    "opt_alie",
    "opt_ipm",
    "scale",
    "search",
    "sign_flip",
    "z_max",
    "zero",
]

Defence = Callable[[Float32[Tensor, "n d"], int], Float32[Tensor, " d"]]  # rows, f -> their aggregate

_EVALUATIONS = 20  # of the defence, in a line search
_COARSE = 0.6  # of them, over the whole range; the others close in on the best
_HALVINGS = 20  # of an interval: six digits
_MARGIN = 1e-5  # of a distance: what its rounding leaves open


@runtime_checkable
class Attack(Protocol):
    """What f liars send."""

    def __call__(self, honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, "f d"]:
        """f rows, from all honest ones."""
        ...


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

    After González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL", 2025, arXiv 2505.24802, whose steps double while
    they gain, and so run past the weak strengths that robust rules let through; here a coarse search comes first.
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
    """`alie` of the strength, of either sign, that moves the aggregate furthest (search as in `opt_ipm`)."""
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
    """What one honest miner sends: the one furthest out along the direction in which honest gradients differ most.

    Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", 2022,
    arXiv 2006.09365; the direction is exact here, not an estimate over rounds.
    """
    h = len(honest)
    _, directions = np.linalg.eigh(moments(honest).span.inner[1 : h + 1, 1 : h + 1])
    return _same(honest[int(np.abs(directions[:, -1]).argmax())], f)


def gaussian(
    honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator, strength: float = 1.0
) -> Float32[Tensor, "f d"]:
    """Noise that is `strength` times as long as an honest gradient, independent from liar to liar."""
    return _noise(f, honest.shape[1], rng) * (strength * _typical(honest))


def zero(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, "f d"]:
    """Nothing: a free rider."""
    return torch.zeros(f, honest.shape[1])


def scale(
    honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator, strength: float = 1e6
) -> Float32[Tensor, "f d"]:
    """strength mean: the right direction, out of all proportion."""
    return _same(honest.mean(0) * strength, f)


def apart(
    hostile: Float32[Tensor, "f d"], honest: Float32[Tensor, "h d"], rng: torch.Generator, by: float = 0.25
) -> Float32[Tensor, "f d"]:
    """`hostile` with noise `by` times as long as each row or as a typical honest one, whichever is shorter.

    Enough not to be taken for copies of each other, little enough to change nothing else.
    """
    lengths: Tensor = hostile.norm(dim=1, keepdim=True).clamp(max=_typical(honest))
    return hostile + _noise(len(hostile), hostile.shape[1], rng) * (by * lengths)


def z_max(h: int, f: int) -> float:
    """Strength at which as many honest values as a majority needs are still expected beyond the liars' (`alie`)."""
    n = h + f
    supporters = n // 2 + 1 - f
    share = min(max((h - supporters) / h, 1e-3), 1 - 1e-3)
    return NormalDist().inv_cdf(share)


def search(damage: Callable[[float], float], evaluations: int, between: tuple[float, float]) -> tuple[float, float]:
    """The most damage found and the strength that does it, among `evaluations` strengths of a range tried by ratios.

    A coarse search comes first; the rest closes in on its best. Of strengths that do as much, the weakest counts:
    where a rule clips, all beyond some strength do.
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


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "sign_flip": sign_flip,
        "ipm": ipm,
        "alie": alie,
        "min_max": min_max,
        "mimic": mimic,
        "gaussian": gaussian,
        "zero": zero,
        "scale": scale,
    }
)  # those that need no knowledge of the defence


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
    """Trials of a defence that the liars can run themselves."""

    honest: Tensor
    f: int
    rng: torch.Generator
    defence: Defence

    def furthest(
        self, row: Callable[[float], Tensor], evaluations: int, between: tuple[float, float]
    ) -> tuple[float, Tensor]:
        """The most damage of f rows near row(x), over x in a range searched by ratios, and those rows."""
        sent: dict[float, Tensor] = {}

        def damage(x: float) -> float:
            done, sent[x] = self._trial(row(x))
            return done

        done, x = search(damage, evaluations, between)
        return done, sent[x]

    def _trial(self, row: Tensor) -> tuple[float, Tensor]:
        """How far the aggregate lies from the honest mean, and what was sent."""
        hostile = apart(_same(row, self.f), self.honest, self.rng)
        aggregate = self.defence(torch.cat([self.honest, hostile]), self.f)
        return float((aggregate - self.honest.mean(0)).norm()), hostile
