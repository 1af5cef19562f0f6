"""The seam between a simulated federation and those in it who lie: what liars see of a round, and what they send.

Liars are given more than any real one could have: all honest gradients of the round before they answer, the rule, the
aggregate that was applied. Whoever stands against them stands against less.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import PeerError
from fedgpt2.protocol.messages import Order
from fedgpt2.types import Digest

__all__ = ["Attack", "RoundView", "Submission"]


@dataclass(frozen=True)
class Submission:
    """What one liar sends for its order; everything else of its contribution is as it should be."""

    header: bytes  # length prefix and JSON of a safetensors body
    data: memoryview  # its data region; the same memory may be written again when the liars are next asked
    codec: str
    parent: Digest


@dataclass(frozen=True)
class RoundView:
    """A round as liars see it.

    Letters: h honest miners, f liars, d parameters.
    """

    round: int
    orders: tuple[Order, ...]  # the liars' own, in an order that never changes; fewer while some sit out
    weights: Float32[Tensor, " d"]  # the broadcast weights
    before: Float32[Tensor, " d"] | None  # those of the round before
    aggregate: Float32[Tensor, " d"] | None  # the last aggregate formed, before any clipping; None until there is one
    shares: tuple[float, ...]  # each liar's weight in that aggregate; 0 where it was refused
    honest: Callable[[], Float32[Tensor, "h d"]]  # the honest gradients of this round; not to be written to
    gradient: Callable[[Float32[Tensor, " d"], Tokens], Float32[Tensor, " d"]]  # at any weights, on any windows; new
    windows: Callable[[int], Tokens]  # assigned to liar i, uint16 [n, seq_len + 1]
    defence: Callable[[Float32[Tensor, "n d"], int], Float32[Tensor, " d"]]  # the run's own rule: rows, f -> aggregate
    rng: torch.Generator  # seeded by run and round
    pipeline: Pipeline | None = None  # the same rule as stages, where it is such: a search then needs no dense rows

    @property
    def f(self) -> int:
        """How many lie."""
        return len(self.orders)


class Attack(Protocol):
    """All liars of a run, who act as one and remember earlier rounds."""

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """One answer a liar, in the order of `scene.orders`; an error where none comes."""
        ...
