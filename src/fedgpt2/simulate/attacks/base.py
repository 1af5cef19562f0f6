"""The interface of attacks: what hostile miners see of a round, and what they send.

They see more than any real hostile miner could: all honest gradients of the round before they answer, the aggregation
rule, and the last aggregate. A defence that holds against them holds against weaker ones.
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
    """What one hostile miner sends for its order; the rest of its contribution is correct."""

    header: bytes  # length prefix and JSON of a safetensors body
    data: memoryview  # its data region; the attack may write this memory again when it is next called
    codec: str
    parent: Digest


@dataclass(frozen=True)
class RoundView:
    """A round as the hostile miners see it.

    Letters: h honest miners, f hostile ones, d parameters.
    """

    round: int
    orders: tuple[Order, ...]  # of the hostile miners, always in the same order; fewer while some are suspended
    weights: Float32[Tensor, " d"]  # the broadcast weights
    before: Float32[Tensor, " d"] | None  # those of the round before
    aggregate: Float32[Tensor, " d"] | None  # the last aggregate, before clipping; None until there is one
    shares: tuple[float, ...]  # each hostile miner's weight in that aggregate; 0 where it was refused
    honest: Callable[[], Float32[Tensor, "h d"]]  # the honest gradients of this round; read only
    gradient: Callable[[Float32[Tensor, " d"], Tokens], Float32[Tensor, " d"]]  # at any weights, on any windows; new
    windows: Callable[[int], Tokens]  # those assigned to hostile miner i, uint16 [n, seq_len + 1]
    defence: Callable[[Float32[Tensor, "n d"], int], Float32[Tensor, " d"]]  # the run's own rule: rows, f -> aggregate
    rng: torch.Generator  # seeded by run and round
    pipeline: Pipeline | None = None  # the same rule where it is a pipeline: a search then needs no dense rows

    @property
    def f(self) -> int:
        """Number of hostile miners."""
        return len(self.orders)


class Attack(Protocol):
    """All hostile miners of a run: they act together and keep state over rounds."""

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """One submission per hostile miner, in the order of `view.orders`; an error where a miner sends nothing."""
        ...
