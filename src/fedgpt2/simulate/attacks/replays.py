"""Liars who hand back what the validator itself has published or could be made to tell: its last step.

An update of the weights is turned into a gradient's sign; lengths are those of honest gradients, so that a rule that
looks at length sees nothing. In the first round there is nothing to replay, and they are honest.

Letters: f liars, d parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import SendBuffers
from fedgpt2.simulate.attacks.low_effort import everyone, own, scrap

__all__ = ["REPLAYS", "Manner", "Replay", "Shape", "Source"]

_REMEMBERED = 0.75  # of a running mean a round: about four rounds


class Source(Enum):
    """What is replayed."""

    UPDATE = "update"  # the last change of the broadcast weights, which every miner can work out
    AGGREGATE = "aggregate"  # the last aggregate, which a miner can only guess


class Shape(Enum):
    """What is made of it."""

    PLAIN = ""
    NEGATIVE = "_negative"
    SIGN = "_sign"  # of each value: what a step of Adam looks like
    MEAN = "_mean"


class Manner(Enum):
    """What it is sent with."""

    BARE = ""
    NOISE = "_noise"
    PADDED = "_padded"


REPLAYS: Mapping[str, tuple[Source, Shape, Manner]] = MappingProxyType(
    {
        f"replay_{source.value}{shape.value}{manner.value}": (source, shape, manner)
        for source in Source
        for shape in Shape
        for manner in Manner
        if shape is not Shape.NEGATIVE or manner is Manner.BARE
    }
)


@dataclass
class Replay:
    """One source in one shape and manner."""

    source: Source
    shape: Shape
    manner: Manner
    desk: SendBuffers = field(default_factory=SendBuffers)
    _last: Tensor | None = field(default=None, init=False)
    _mean: Tensor | None = field(default=None, init=False)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The replay, or honest gradients as long as there is none."""
        self._remember(scene)
        if self._last is None or self._mean is None:
            return everyone(scene, own)
        row = _shaped(self.shape, self._last, self._mean)
        if self.manner is Manner.PADDED:
            return self._padded(scene, row)
        row = row * (float(torch.stack([honest.norm() for honest in scene.honest()]).median()) / _length(row))
        return self._noisy(scene, row) if self.manner is Manner.NOISE else self.desk.alike(scene, row)

    def _remember(self, scene: RoundView) -> None:
        """Take in the last round; one that left the weights as they were tells nothing new."""
        trace = _trace(self.source, scene)
        if trace is None or not float(trace.norm()):
            return
        self._last = trace
        if self._mean is None:
            self._mean = trace.clone()
        self._mean.lerp_(trace, 1.0 - _REMEMBERED)

    def _noisy(self, scene: RoundView, row: Tensor) -> Sequence[Submission]:
        length = _length(row)
        for out, noise in zip(self.desk.rows(scene), self.desk.noise(scene), strict=True):
            torch.add(row, noise, alpha=length, out=out)
        return self.desk.sealed(scene)

    def _padded(self, scene: RoundView, row: Tensor) -> Sequence[Submission]:
        length = _length(row)
        for i, out in enumerate(self.desk.rows(scene)):
            little = scrap(scene, i)
            torch.add(little, row, alpha=float(little.norm()) / length, out=out)
        return self.desk.sealed(scene)


def _trace(source: Source, scene: RoundView) -> Float32[Tensor, " d"] | None:
    if source is Source.AGGREGATE:
        return None if scene.aggregate is None else scene.aggregate.clone()
    return None if scene.before is None else scene.before - scene.weights


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
