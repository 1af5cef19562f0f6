"""Attacks as whole rows [f, d], for tests: formulas with f rows each, and searches that try a defence as a function.

Letters: h honest gradients, f hostile ones, d parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedgpt2.simulate.attacks.formulas import search
from fedgpt2.simulate.attacks.gradient_stats import moments

Tensor = torch.Tensor
Attack = Callable[[Tensor, int, torch.Generator], Tensor]  # honest, f, rng -> rows
Defence = Callable[[Tensor, int], Tensor]  # rows, f -> their aggregate


def rows(formula: Callable[..., Tensor], **settings: float) -> Attack:
    """The formula's row, f times."""
    return lambda honest, f, rng: formula(honest, f, **settings).expand(f, -1).clone()


def gaussian(honest: Tensor, f: int, rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """Independent noise, `strength` times as long as an honest gradient."""
    return _noise(f, honest.shape[1], rng) * (strength * _typical(honest))


def zero(honest: Tensor, f: int, rng: torch.Generator) -> Tensor:
    """Zeros."""
    return torch.zeros(f, honest.shape[1])


def opt_ipm(
    honest: Tensor,
    f: int,
    rng: torch.Generator,
    defence: Defence,
    evaluations: int = 20,
) -> Tensor:
    """`ipm` of the strength that moves the aggregate of `defence` furthest from the honest mean, sent `apart`.

    After González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL", 2025, arXiv 2505.24802. Their search doubles the
    strength while damage grows and so misses weak strengths that robust rules let through; here a coarse search over
    the range comes first.
    """
    mean = honest.mean(0)
    search = _Search(honest, f, rng, defence)
    return search.furthest(lambda strength: mean * -strength, evaluations, between=(0.1, 100.0))[1]


def opt_alie(
    honest: Tensor,
    f: int,
    rng: torch.Generator,
    defence: Defence,
    evaluations: int = 20,
) -> Tensor:
    """`alie` of the strength and sign that move the aggregate furthest; see `opt_ipm` for the search."""
    of = moments(honest)
    mean, std = of.mean, of.std
    search = _Search(honest, f, rng, defence)
    up = search.furthest(lambda strength: mean + strength * std, evaluations // 2, between=(0.25, 8.0))
    down = search.furthest(lambda strength: mean - strength * std, evaluations - evaluations // 2, between=(0.25, 8.0))
    return max(up, down, key=lambda found: found[0])[1]


def apart(hostile: Tensor, honest: Tensor, rng: torch.Generator, by: float = 0.25) -> Tensor:
    """`hostile` with noise `by` times as long as each row or as a typical honest one, whichever is shorter.

    Enough noise to be in no cluster, too little to change the effect of the rows.
    """
    lengths: Tensor = hostile.norm(dim=1, keepdim=True).clamp(max=_typical(honest))
    return hostile + _noise(len(hostile), hostile.shape[1], rng) * (by * lengths)


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
        hostile = apart(row.expand(self.f, -1).clone(), self.honest, self.rng)
        aggregate = self.defence(torch.cat([self.honest, hostile]), self.f)
        return float((aggregate - self.honest.mean(0)).norm()), hostile
