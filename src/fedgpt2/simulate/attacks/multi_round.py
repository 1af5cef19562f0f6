"""Liars whose harm is in what they do over many rounds.

Letters: h honest gradients, f liars, d parameters, n miners.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import SendBuffers
from fedgpt2.simulate.attacks.from_gradients import AIMS
from fedgpt2.simulate.attacks.gradient_stats import moments
from fedgpt2.simulate.attacks.low_effort import everyone, own

__all__ = ["ScoreAware", "TimeCoupled"]

_VOTE = 0.3  # noise by the spread of honest gradients: copies are nearer to each other than 0.2 of their distances
_TRUSTED = 0.75  # of an equal share: rules that choose give an honest miner all or nothing in a single round
_REMEMBERED = 0.7  # of their standing a round
_PATIENT = 3  # honest rounds at least, before they attack
_BOLD = 2  # rounds of attack


@dataclass
class TimeCoupled:
    """The mean plus the same small bias every round: too little to see in any, all of it in the same direction.

    The direction is against the honest mean of the first round, which no later gradient quite repeats. Bias and noise
    together take each as far from the mean as the median honest gradient is.
    """

    desk: SendBuffers = field(default_factory=SendBuffers)
    _direction: Tensor | None = field(default=None, init=False)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each with noise of its own."""
        of = moments(scene.honest())
        if self._direction is None:
            self._direction = -of.mean / max(float(of.mean.norm()), 1e-30)
        spread = float(torch.from_numpy(of.honest.distances_to(of.point(1.0)[: of.h])).median())
        noise = _VOTE * spread
        row = torch.add(of.mean, self._direction, alpha=(spread**2 - noise**2) ** 0.5)
        for out, own_noise in zip(self.desk.rows(scene), self.desk.noise(scene), strict=True):
            torch.add(row, own_noise, alpha=noise, out=out)
        return self.desk.sealed(scene)


@dataclass
class ScoreAware:
    """Honest until they weigh what honest miners do, then two rounds of `sign_flip`, then honest again."""

    desk: SendBuffers = field(default_factory=SendBuffers)
    standing: float = 0.0  # running mean of their share of an aggregate, by an equal one
    _honest: int = field(default=0, init=False)  # rounds on end
    _attacks: int = field(default=0, init=False)  # rounds still to come

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """Honest gradients or an attack."""
        self._look(scene)
        if not self._attacks and self._honest >= _PATIENT and self.standing >= _TRUSTED:
            self._attacks, self._honest = _BOLD, 0
        if self._attacks:
            self._attacks -= 1
            return self.desk.apart(scene, AIMS["sign_flip"](scene.honest(), scene.f, scene.rng))
        self._honest += 1
        return everyone(scene, own)

    def _look(self, scene: RoundView) -> None:
        """Take in what became of the last round, if it was an honest one."""
        if self._honest and scene.aggregate is not None:
            share = sum(scene.shares) / max(1, scene.f) * (scene.f + len(scene.honest()))
            self.standing = _REMEMBERED * self.standing + (1.0 - _REMEMBERED) * share
