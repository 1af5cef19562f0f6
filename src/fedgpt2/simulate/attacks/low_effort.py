"""Liars who compute gradients, but not those they were asked for.

Letters: f liars, d parameters, n windows of l tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.gram import norm
from fedgpt2.config import Limits
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import PeerError
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import SendBuffers, seal
from fedgpt2.types import ModelShape

__all__ = [
    "First",
    "Old",
    "Sybils",
    "SybilsApart",
    "Working",
    "bound",
    "everyone",
    "first",
    "own",
    "pooled",
    "random_tokens",
    "scaled",
    "scrap",
    "split",
]

Work = Callable[[RoundView, int], Float32[Tensor, " d"]]  # scene, which liar -> what it sends

_SCRAP = 8  # parts of the text, one of which is used
_OLDEST = 10  # rounds


@dataclass(frozen=True)
class Working:
    """Each sends what it works out by itself."""

    work: Work

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """One row a liar."""
        return everyone(scene, self.work)


@dataclass(frozen=True)
class Sybils:
    """One honest gradient in all their names."""

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The first one's, from each."""
        row = own(scene, 0)
        return everyone(scene, lambda scene, i: row)


@dataclass
class SybilsApart:
    """One row, the work of one miner, in all their names, each with noise enough for a vote of its own."""

    row: Callable[[RoundView], Float32[Tensor, " d"]]
    desk: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each."""
        return self.desk.apart(scene, self.row(scene))


@dataclass
class First:
    """What each honestly computed in its first round, for ever."""

    kept: dict[str, Tensor] = field(default_factory=dict)  # by hotkey: not all are at work in every round

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The first rounds' rows."""
        return everyone(scene, self._first)

    def _first(self, scene: RoundView, i: int) -> Tensor:
        hotkey = scene.orders[i].receiver
        if hotkey not in self.kept:
            self.kept[hotkey] = own(scene, i)
        return self.kept[hotkey]


@dataclass
class Old:
    """Gradients at weights kept for ten rounds, said to be at those of now."""

    weights: Tensor | None = None
    since: int = 0

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """Weights one to ten rounds old, once there are any."""
        if self.weights is None or scene.round - self.since > _OLDEST:
            older = scene.before
            self.weights = (scene.weights if older is None else older).clone()
            self.since = scene.round if older is None else scene.round - 1
        weights = self.weights
        return everyone(scene, lambda scene, i: scene.gradient(weights, scene.windows(i)))


def everyone(scene: RoundView, work: Work) -> Sequence[Submission]:
    """What `work` gives each of them, as answers."""
    return [seal(order, work(scene, i)) for i, order in enumerate(scene.orders)]


def first(scene: RoundView) -> Float32[Tensor, " d"]:
    """The honest gradient of the first liar."""
    return own(scene, 0)


def pooled(scene: RoundView) -> Float32[Tensor, " d"]:
    """The gradient of one miner's amount of text, an equal part of each liar's."""
    texts = [scene.windows(i) for i in range(scene.f)]
    fewest = min(map(len, texts))
    return scene.gradient(scene.weights, np.concatenate([_part(text[:fewest], scene.f) for text in texts]))


def own(scene: RoundView, i: int) -> Float32[Tensor, " d"]:
    """The honest gradient of liar `i`."""
    return scene.gradient(scene.weights, scene.windows(i))


def scrap(scene: RoundView, i: int) -> Float32[Tensor, " d"]:
    """Liar i's gradient on an eighth of its text: whole windows, or the beginning of one."""
    return scene.gradient(scene.weights, _part(scene.windows(i), _SCRAP))


def split(scene: RoundView, i: int) -> Float32[Tensor, " d"]:
    """Liar i's gradient on a part of its text, such that all of them together do one miner's work."""
    return scene.gradient(scene.weights, _part(scene.windows(i), scene.f))


def random_tokens(scene: RoundView, i: int) -> Float32[Tensor, " d"]:
    """A gradient on as many windows as were assigned, of tokens drawn evenly from the vocabulary."""
    return scene.gradient(scene.weights, _drawn(scene.windows(i), scene.orders[i].model, scene.rng))


def scaled(scene: RoundView, i: int) -> Float32[Tensor, " d"]:
    """The gradient of random tokens, a million times as long."""
    return random_tokens(scene, i) * 1e6


def bound(scene: RoundView, i: int) -> Float32[Tensor, " d"]:
    """The same, as long as admission takes by default."""
    row = random_tokens(scene, i)
    return row * (0.999 * Limits().gradient_norm / max(norm(row), 1e-30))  # as exact as the bound itself


def _part(windows: Tokens, parts: int) -> Tokens:
    """One of `parts`: whole windows, or the beginning of one."""
    n, length = len(windows), windows.shape[1] - 1
    if n >= parts:
        return windows[: n // parts]
    return windows[:1, : max(1, n * length // parts) + 1]


def _drawn(windows: Tokens, model: ModelShape, rng: torch.Generator) -> Tokens:
    most = min(model.vocab_size, 1 << 16)
    return torch.randint(most, tuple(windows.shape), generator=rng).numpy().astype(np.uint16)
