"""Attacks that compute real gradients, but not those that were asked for.

Letters: f hostile miners, d parameters, n windows of l tokens.
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
    "ConstantReplay",
    "Each",
    "HiddenStale",
    "Sybils",
    "SybilsApart",
    "first_gradient",
    "for_each",
    "own_gradient",
    "pooled_gradient",
    "random_tokens",
    "scaled",
    "scaled_to_bound",
    "split_work",
    "tiny_batch",
]

Work = Callable[[RoundView, int], Float32[Tensor, " d"]]  # round, index of a hostile miner -> the row it sends

_TINY = 8  # parts of the text, one of which is used
_OLDEST = 10  # rounds


@dataclass(frozen=True)
class Each:
    """Each hostile miner sends a row of its own."""

    work: Work

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """One row per miner."""
        return for_each(view, self.work)


@dataclass(frozen=True)
class Sybils:
    """All hostile miners send one honest gradient."""

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The first miner's gradient, from each."""
        row = own_gradient(view, 0)
        return for_each(view, lambda view, i: row)


@dataclass
class SybilsApart:
    """All hostile miners send one row, the work of one miner, each with noise enough for a vote."""

    row: Callable[[RoundView], Float32[Tensor, " d"]]
    buffers: SendBuffers = field(default_factory=SendBuffers)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The row, from each."""
        return self.buffers.apart(view, self.row(view))


@dataclass
class ConstantReplay:
    """Each hostile miner sends the honest gradient of its first round in every round."""

    kept: dict[str, Tensor] = field(default_factory=dict)  # by hotkey: not all take part in every round

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The rows of each miner's first round."""
        return for_each(view, self._first)

    def _first(self, view: RoundView, i: int) -> Tensor:
        hotkey = view.orders[i].receiver
        if hotkey not in self.kept:
            self.kept[hotkey] = own_gradient(view, i)
        return self.kept[hotkey]


@dataclass
class HiddenStale:
    """Gradients at weights kept for ten rounds, sent as gradients at the current ones."""

    weights: Tensor | None = None
    since: int = 0

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """Gradients at weights one to ten rounds old; in the first round there are none older."""
        if self.weights is None or view.round - self.since > _OLDEST:
            older = view.before
            self.weights = (view.weights if older is None else older).clone()
            self.since = view.round if older is None else view.round - 1
        weights = self.weights
        return for_each(view, lambda view, i: view.gradient(weights, view.windows(i)))


def for_each(view: RoundView, work: Work) -> Sequence[Submission]:
    """The row that `work` gives for each hostile miner, as submissions."""
    return [seal(order, work(view, i)) for i, order in enumerate(view.orders)]


def first_gradient(view: RoundView) -> Float32[Tensor, " d"]:
    """The honest gradient of the first hostile miner."""
    return own_gradient(view, 0)


def pooled_gradient(view: RoundView) -> Float32[Tensor, " d"]:
    """One gradient over as much text as one miner has, an equal part of each hostile miner's."""
    texts = [view.windows(i) for i in range(view.f)]
    fewest = min(map(len, texts))
    return view.gradient(view.weights, np.concatenate([_part(text[:fewest], view.f) for text in texts]))


def own_gradient(view: RoundView, i: int) -> Float32[Tensor, " d"]:
    """The honest gradient of hostile miner i."""
    return view.gradient(view.weights, view.windows(i))


def tiny_batch(view: RoundView, i: int) -> Float32[Tensor, " d"]:
    """Miner i's gradient on an eighth of its text: whole windows, or the beginning of one."""
    return view.gradient(view.weights, _part(view.windows(i), _TINY))


def split_work(view: RoundView, i: int) -> Float32[Tensor, " d"]:
    """Miner i's gradient on 1 / f of its text: all hostile miners together do the work of one."""
    return view.gradient(view.weights, _part(view.windows(i), view.f))


def random_tokens(view: RoundView, i: int) -> Float32[Tensor, " d"]:
    """A gradient on as many windows as were assigned, of tokens drawn uniformly from the vocabulary."""
    return view.gradient(view.weights, _drawn(view.windows(i), view.orders[i].model, view.rng))


def scaled(view: RoundView, i: int) -> Float32[Tensor, " d"]:
    """The gradient of random tokens, multiplied by a million."""
    return random_tokens(view, i) * 1e6


def scaled_to_bound(view: RoundView, i: int) -> Float32[Tensor, " d"]:
    """The gradient of random tokens, scaled to just below the default norm limit of admission."""
    row = random_tokens(view, i)
    return row * (0.999 * Limits().gradient_norm / max(norm(row), 1e-30))


def _part(windows: Tokens, parts: int) -> Tokens:
    """One of `parts`: whole windows, or the beginning of one."""
    n, length = len(windows), windows.shape[1] - 1
    if n >= parts:
        return windows[: n // parts]
    return windows[:1, : max(1, n * length // parts) + 1]


def _drawn(windows: Tokens, model: ModelShape, rng: torch.Generator) -> Tokens:
    most = min(model.vocab_size, 1 << 16)
    return torch.randint(most, tuple(windows.shape), generator=rng).numpy().astype(np.uint16)
