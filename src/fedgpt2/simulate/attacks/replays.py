"""Attacks that replay the last step of the validator instead of computing.

An update of the weights gets the sign of a gradient, and rows get the norm of honest gradients, so that norms do not
betray them. In the first round there is nothing to replay: the miners are honest.

Letters: f hostile miners, d parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import SendBuffers
from fedgpt2.simulate.attacks.low_effort import for_each, own_gradient, tiny_batch

__all__ = ["REPLAYS", "Manner", "Replay", "Shape", "Source"]

_DECAY = 0.75  # of the running mean, per round: about four rounds


class Source(Enum):
    """What is replayed."""

    UPDATE = "update"  # the last change of the broadcast weights, which every miner can compute
    AGGREGATE = "aggregate"  # the last aggregate, which a miner can only guess


class Shape(Enum):
    """How the replayed vector is changed."""

    PLAIN = ""
    NEGATIVE = "_negative"
    SIGN = "_sign"  # of each value, like a step of Adam
    MEAN = "_mean"


class Manner(Enum):
    """What is added to it."""

    BARE = ""
    NOISE = "_noise"
    PADDED = "_padded"


_WHAT = {Source.UPDATE: "change of the weights", Source.AGGREGATE: "aggregate"}
_SHAPED = {
    Shape.PLAIN: "the last {}",
    Shape.NEGATIVE: "minus the last {}",
    Shape.SIGN: "the sign of each value of the last {}",
    Shape.MEAN: "the running mean (about four rounds) of each {}",
}
_SENT = {
    Manner.BARE: "{}, as long as an honest gradient, one vote",
    Manner.NOISE: "{} plus noise of the same norm, different for each miner",
    Manner.PADDED: "a gradient over an eighth of the text plus {}, equally long",
}

REPLAYS: tuple[tuple[str, tuple[Source, Shape, Manner], str], ...] = tuple(
    (
        f"replay_{source.value}{shape.value}{manner.value}",
        (source, shape, manner),
        _SENT[manner].format(_SHAPED[shape].format(_WHAT[source])),
    )
    for source in Source
    for shape in Shape
    for manner in Manner
    if shape is not Shape.NEGATIVE or manner is Manner.BARE
)
"""Name, arguments of `Replay`, and what is sent."""


@dataclass
class Replay:
    """One source in one shape and manner."""

    source: Source
    shape: Shape
    manner: Manner
    buffers: SendBuffers = field(default_factory=SendBuffers)
    _last: Tensor | None = field(default=None, init=False)
    _mean: Tensor | None = field(default=None, init=False)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The replay, or honest gradients while there is nothing to replay."""
        self._remember(view)
        if self._last is None or self._mean is None:
            return for_each(view, own_gradient)
        row = _shaped(self.shape, self._last, self._mean)
        if self.manner is Manner.PADDED:
            return self._padded(view, row)
        row = row * (float(torch.stack([honest.norm() for honest in view.honest()]).median()) / _length(row))
        return self._noisy(view, row) if self.manner is Manner.NOISE else self.buffers.alike(view, row)

    def _remember(self, view: RoundView) -> None:
        """Take in the last round, unless it left the weights unchanged."""
        trace = _trace(self.source, view)
        if trace is None or not float(trace.norm()):
            return
        self._last = trace
        if self._mean is None:
            self._mean = trace.clone()
        self._mean.lerp_(trace, 1.0 - _DECAY)

    def _noisy(self, view: RoundView, row: Tensor) -> Sequence[Submission]:
        length = _length(row)
        for out, noise in zip(self.buffers.rows(view), self.buffers.noise(view), strict=True):
            torch.add(row, noise, alpha=length, out=out)
        return self.buffers.sealed(view)

    def _padded(self, view: RoundView, row: Tensor) -> Sequence[Submission]:
        length = _length(row)
        for i, out in enumerate(self.buffers.rows(view)):
            little = tiny_batch(view, i)
            torch.add(little, row, alpha=float(little.norm()) / length, out=out)
        return self.buffers.sealed(view)


def _trace(source: Source, view: RoundView) -> Float32[Tensor, " d"] | None:
    if source is Source.AGGREGATE:
        return None if view.aggregate is None else view.aggregate.clone()
    return None if view.before is None else view.before - view.weights


def _shaped(shape: Shape, last: Tensor, mean: Tensor) -> Tensor:
    match shape:
        case Shape.NEGATIVE:
            return -last
        case Shape.SIGN:
            return last.sign()
        case Shape.MEAN:
            return mean
        case Shape.PLAIN:
            return last


def _length(row: Tensor) -> float:
    return max(float(row.norm()), 1e-30)
