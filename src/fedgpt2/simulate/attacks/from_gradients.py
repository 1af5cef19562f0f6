"""Attacks whose rows are combinations of the honest gradients of the round.

Letters: h honest gradients, f hostile miners, d parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.aggregation.rules import Mean
from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks import formulas
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import DISTINCT, SendBuffers, seal
from fedgpt2.simulate.attacks.probe import probe

__all__ = ["Copies", "Line", "Noise", "SameRow", "Strongest", "opt_alie", "opt_ipm"]

Target = Callable[[Float32[Tensor, "h d"], int], Float32[Tensor, " d"]]  # honest, f -> one row

_MEAN = Pipeline((), Mean())  # stands for the mean by tokens


@dataclass
class SameRow:
    """All hostile miners send one row: with noise enough for a vote each, or as near-copies with one vote."""

    target: Target
    alike: bool = False
    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each."""
        row = self.target(view.honest(), view.f)
        return self.buffers.alike(view, row) if self.alike else self.buffers.apart(view, row)


@dataclass
class Noise:
    """Gaussian noise with the norm of an honest gradient."""

    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """Independent noise from each."""
        norm = float(torch.stack([row.norm() for row in view.honest()]).median())
        for row, noise in zip(self.buffers.rows(view), self.buffers.noise(view), strict=True):
            torch.mul(noise, norm, out=row)
        return self.buffers.sealed(view)


@dataclass
class Copies:
    """Each hostile miner sends an honest miner's gradient, with noise `by` times its norm."""

    by: float = 0.0
    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The first hostile miner copies the first honest one, and so on."""
        honest = view.honest()
        copied = [honest[i % len(honest)] for i in range(view.f)]
        if not self.by:
            return [seal(order, row) for order, row in zip(view.orders, copied, strict=True)]
        for row, noise, out in zip(copied, self.buffers.noise(view), self.buffers.rows(view), strict=True):
            torch.add(row, noise, alpha=self.by * float(row.norm()), out=out)
        return self.buffers.sealed(view)


@dataclass(frozen=True)
class Line:
    """Candidate rows by strength x: mean * mean + std * x * std, or x * mean * mean where std is 0."""

    mean: float
    std: float
    between: tuple[float, float]
    evaluations: int

    def at(self, x: float) -> tuple[float, float]:
        """The multiples of mean and standard deviation."""
        return (self.mean, self.std * x) if self.std else (self.mean * x, 0.0)


@dataclass
class Strongest:
    """The candidate of several lines that moves the rule's result furthest, each miner with noise of its own.

    After González, Guerraoui, Pinot, Rizk, Stephan, Taïani, "ByzFL", 2025, arXiv 2505.24802. Their search doubles the
    strength while damage grows and so misses weak strengths that robust rules let through; here a coarse search over
    the range comes first.
    """

    lines: Sequence[Line]
    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The most harmful row found."""
        noise = self.buffers.noise(view)
        rule = probe(view.honest(), noise, view.pipeline or _MEAN, view.rng)
        _, mean, std = max(self._worst(line, rule.damage) for line in self.lines)
        row = rule.of.mean * mean
        row.add_(rule.of.std, alpha=std)
        norm = DISTINCT * float(row.norm())
        for own, out in zip(noise, self.buffers.rows(view), strict=True):
            torch.add(row, own, alpha=norm, out=out)
        return self.buffers.sealed(view)

    def _worst(self, line: Line, damage: Callable[[float, float], float]) -> tuple[float, float, float]:
        done, x = formulas.search(lambda x: damage(*line.at(x)), line.evaluations, line.between)
        return (done, *line.at(x))


def opt_ipm() -> Strongest:
    """`formulas.ipm` of the most harmful strength."""
    return Strongest([Line(-1.0, 0.0, (0.1, 100.0), 20)])


def opt_alie() -> Strongest:
    """`formulas.alie` of the most harmful strength and sign."""
    return Strongest([Line(1.0, sign, (0.25, 8.0), 10) for sign in (1.0, -1.0)])
