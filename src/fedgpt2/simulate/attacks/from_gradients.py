"""Attacks whose rows are combinations of the honest gradients of the round.

Letters: h honest gradients, f hostile miners, d parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks import formulas
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import DISTINCT, SendBuffers, seal
from fedgpt2.simulate.attacks.formulas import Defence
from fedgpt2.simulate.attacks.probe import probe

__all__ = [
    "Copies",
    "Line",
    "Noise",
    "SameRow",
    "Strongest",
    "alie",
    "ipm",
    "ipm_100",
    "mimic",
    "min_max",
    "minus_mean",
    "opt_alie",
    "opt_ipm",
    "sign_flip",
]

Target = Callable[[Float32[Tensor, "h d"], int, torch.Generator], Float32[Tensor, " d"]]  # honest, f, rng -> one row
Dense = Callable[[Float32[Tensor, "h d"], int, torch.Generator, Defence], Float32[Tensor, "f d"]]


def sign_flip(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """Minus the honest mean, h / f + 1 times as long: the plain mean of all rows then points the other way.

    A shorter row would only halve that mean, which does not change the steps of Adam.
    """
    return formulas.ipm(honest, 1, rng, strength=len(honest) / f + 1.0)[0]


def minus_mean(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """Minus the honest mean."""
    return formulas.sign_flip(honest, 1, rng)[0]


def ipm(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """`formulas.ipm`, one row."""
    return formulas.ipm(honest, 1, rng)[0]


def ipm_100(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """`formulas.ipm` of strength 100, one row."""
    return formulas.ipm(honest, 1, rng, strength=100.0)[0]


def alie(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """`formulas.alie` with z_max, one row."""
    return formulas.alie(honest, 1, rng, strength=formulas.z_max(len(honest), f))[0]


def min_max(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """`formulas.min_max`, one row."""
    return formulas.min_max(honest, 1, rng)[0]


def mimic(honest: Float32[Tensor, "h d"], f: int, rng: torch.Generator) -> Float32[Tensor, " d"]:
    """`formulas.mimic`, one row."""
    return formulas.mimic(honest, 1, rng)[0]


@dataclass
class SameRow:
    """All hostile miners send one row: with noise enough for a vote each, or as near-copies with one vote."""

    target: Target
    alike: bool = False
    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each."""
        row = self.target(view.honest(), view.f, view.rng)
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
    """The candidate of several lines that moves the rule's result furthest, each miner with noise of its own."""

    lines: Sequence[Line]
    dense: Dense  # the same search for a rule that is known only as a function
    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The most harmful row found."""
        honest = view.honest()
        if view.pipeline is None:
            rows = self.dense(honest, view.f, view.rng, view.defence)
            return [seal(order, row) for order, row in zip(view.orders, rows, strict=True)]
        noise = self.buffers.noise(view)
        rule = probe(honest, noise, view.pipeline, view.rng)
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
    """`formulas.opt_ipm`, by inner products where the rule is a pipeline."""
    return Strongest([Line(-1.0, 0.0, (0.1, 100.0), 20)], formulas.opt_ipm)


def opt_alie() -> Strongest:
    """`formulas.opt_alie`, by inner products where the rule is a pipeline."""
    return Strongest([Line(1.0, sign, (0.25, 8.0), 10) for sign in (1.0, -1.0)], formulas.opt_alie)
