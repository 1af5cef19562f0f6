"""Liars who send vectors made of the honest gradients of the round.

Letters: h honest gradients, f liars, d parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks import formulas as attacks
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import VOTE, SendBuffers, seal
from fedgpt2.simulate.attacks.formulas import Defence
from fedgpt2.simulate.attacks.probe import probe

__all__ = ["AIMS", "Aim", "Copies", "Line", "Noise", "Opt", "Together", "opt_alie", "opt_ipm"]

Aim = Callable[[Float32[Tensor, "h d"], int, torch.Generator], Float32[Tensor, " d"]]  # honest, f, rng -> one row
Dense = Callable[[Float32[Tensor, "h d"], int, torch.Generator, Defence], Float32[Tensor, "f d"]]


def _alie(honest: Tensor, f: int, rng: torch.Generator) -> Tensor:
    return attacks.alie(honest, 1, rng, strength=attacks.z_max(len(honest), f))[0]


def _sign_flip(honest: Tensor, f: int, rng: torch.Generator) -> Tensor:
    """So much that a plain mean of all is turned: half as long and in the right direction it would be to Adam, whose
    steps do not depend on length, as if nobody had lied.
    """
    return attacks.ipm(honest, 1, rng, strength=len(honest) / f + 1.0)[0]


AIMS: dict[str, Aim] = {
    "sign_flip": _sign_flip,
    "sign_flip_1": lambda honest, f, rng: attacks.sign_flip(honest, 1, rng)[0],
    "ipm": lambda honest, f, rng: attacks.ipm(honest, 1, rng)[0],
    "ipm_100": lambda honest, f, rng: attacks.ipm(honest, 1, rng, strength=100.0)[0],
    "alie": _alie,
    "min_max": lambda honest, f, rng: attacks.min_max(honest, 1, rng)[0],
    "mimic": lambda honest, f, rng: attacks.mimic(honest, 1, rng)[0],
}


@dataclass
class Together:
    """All of them aim at one row, each with a vote of its own, or nearly alike."""

    aim: Aim
    alike: bool = False
    desk: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each."""
        row = self.aim(scene.honest(), scene.f, scene.rng)
        return self.desk.alike(scene, row) if self.alike else self.desk.apart(scene, row)


@dataclass
class Noise:
    """Noise as long as an honest gradient."""

    desk: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """Noise, from each its own."""
        length = float(torch.stack([row.norm() for row in scene.honest()]).median())
        for row, noise in zip(self.desk.rows(scene), self.desk.noise(scene), strict=True):
            torch.mul(noise, length, out=row)
        return self.desk.sealed(scene)


@dataclass
class Copies:
    """Each sends what an honest miner sends, as it is or with noise `by` times as long."""

    by: float = 0.0
    desk: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The first liar copies the first honest miner, and so on."""
        honest = scene.honest()
        copied = [honest[i % len(honest)] for i in range(scene.f)]
        if not self.by:
            return [seal(order, row) for order, row in zip(scene.orders, copied, strict=True)]
        for row, noise, out in zip(copied, self.desk.noise(scene), self.desk.rows(scene), strict=True):
            torch.add(row, noise, alpha=self.by * float(row.norm()), out=out)
        return self.desk.sealed(scene)


@dataclass(frozen=True)
class Line:
    """Candidates: strength x aims at mean * mean + std * x * std, or at x * mean * mean where std is 0."""

    mean: float
    std: float
    between: tuple[float, float]
    evaluations: int

    def at(self, x: float) -> tuple[float, float]:
        """The multiples of mean and standard deviation."""
        return (self.mean, self.std * x) if self.std else (self.mean * x, 0.0)


@dataclass
class Opt:
    """The candidate, of several lines, that moves the rule furthest, each with noise of its own."""

    lines: Sequence[Line]
    dense: Dense  # the same search where the rule is known as a function only
    desk: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The worst that was found."""
        honest = scene.honest()
        if scene.pipeline is None:
            rows = self.dense(honest, scene.f, scene.rng, scene.defence)
            return [seal(order, row) for order, row in zip(scene.orders, rows, strict=True)]
        noise = self.desk.noise(scene)
        rule = probe(honest, noise, scene.pipeline, scene.rng)
        _, mean, std = max(self._worst(line, rule.damage) for line in self.lines)
        row = rule.of.mean * mean
        row.add_(rule.of.std, alpha=std)
        length = VOTE * float(row.norm())
        for own, out in zip(noise, self.desk.rows(scene), strict=True):
            torch.add(row, own, alpha=length, out=out)
        return self.desk.sealed(scene)

    def _worst(self, line: Line, damage: Callable[[float, float], float]) -> tuple[float, float, float]:
        done, x = attacks.search(lambda x: damage(*line.at(x)), line.evaluations, line.between)
        return (done, *line.at(x))


def opt_ipm() -> Opt:
    """`attacks.opt_ipm`, from inner products where the rule allows it."""
    return Opt([Line(-1.0, 0.0, (0.1, 100.0), 20)], attacks.opt_ipm)


def opt_alie() -> Opt:
    """`attacks.opt_alie`, from inner products where the rule allows it."""
    return Opt([Line(1.0, sign, (0.25, 8.0), 10) for sign in (1.0, -1.0)], attacks.opt_alie)
