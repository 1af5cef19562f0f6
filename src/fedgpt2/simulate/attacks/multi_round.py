"""Attacks that plan over many rounds.

Letters: h honest gradients, f hostile miners, d parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import SendBuffers
from fedgpt2.simulate.attacks.formulas import sign_flip
from fedgpt2.simulate.attacks.gradient_stats import moments
from fedgpt2.simulate.attacks.low_effort import for_each, own_gradient

__all__ = ["ScoreAware", "TimeCoupled"]

_NOISE = 0.3  # over the spread of honest gradients: the rows stay outside clusters (nearer than 0.2 of distances)
_TRUSTED = 0.75  # of an equal share; some rules give an honest miner all or nothing in a single round
_DECAY = 0.7  # of the running mean of shares, per round
_HONEST_ROUNDS = 3  # at least, before an attack
_ATTACK_ROUNDS = 2


@dataclass
class TimeCoupled:
    """The honest mean plus the same small bias every round: invisible in one round, adding up over many.

    The bias points against the honest mean of the first round. Bias and noise together take each row as far from the
    mean as the median honest gradient is.
    """

    buffers: SendBuffers = field(default_factory=SendBuffers)
    _direction: Tensor | None = field(default=None, init=False)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each miner with noise of its own."""
        of = moments(view.honest())
        if self._direction is None:
            self._direction = -of.mean / max(float(of.mean.norm()), 1e-30)
        spread = float(torch.from_numpy(of.honest.distances_to(of.point(1.0)[: of.h])).median())
        noise = _NOISE * spread
        row = torch.add(of.mean, self._direction, alpha=(spread**2 - noise**2) ** 0.5)
        for out, own_noise in zip(self.buffers.rows(view), self.buffers.noise(view), strict=True):
            torch.add(row, own_noise, alpha=noise, out=out)
        return self.buffers.sealed(view)


@dataclass
class ScoreAware:
    """Honest until its weight is that of honest miners, then two rounds of `sign_flip`, then honest again."""

    buffers: SendBuffers = field(default_factory=SendBuffers)
    standing: float = 0.0  # running mean of its share of an aggregate over an equal share
    _honest: int = field(default=0, init=False)  # consecutive honest rounds
    _attacks: int = field(default=0, init=False)  # rounds of attack still to come

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """Honest gradients or an attack."""
        self._update_standing(view)
        if not self._attacks and self._honest >= _HONEST_ROUNDS and self.standing >= _TRUSTED:
            self._attacks, self._honest = _ATTACK_ROUNDS, 0
        if self._attacks:
            self._attacks -= 1
            return self.buffers.apart(view, sign_flip(view.honest(), view.f))
        self._honest += 1
        return for_each(view, own_gradient)

    def _update_standing(self, view: RoundView) -> None:
        """Add the shares of the last round, if it was an honest one."""
        if self._honest and view.aggregate is not None:
            share = sum(view.shares) / max(1, view.f) * (view.f + len(view.honest()))
            self.standing = _DECAY * self.standing + (1.0 - _DECAY) * share
