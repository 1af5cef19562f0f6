"""What liars write their answers with: noise drawn once, rows allocated once, the body an order asks for.

Letters: f liars, d parameters.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.miner.orders import answer_codec
from fedgpt2.protocol.messages import Order
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.types import Digest

__all__ = ["VOTE", "SendBuffers", "seal"]

VOTE = 0.25  # noise by its row's length: enough not to be taken for a copy, little enough to change nothing else
_WHISPER = 0.01  # the same computation to anybody who compares
_PLACES = 1 << 16


class SendBuffers:
    """Keeps what is too slow to make anew every round; rows are written again at the next call."""

    def __init__(self) -> None:
        self._pool = torch.empty(0)
        self._rows = torch.empty(0, 0)

    def noise(self, scene: RoundView) -> list[Float32[Tensor, " d"]]:
        """White noise for each liar, about 1 long, not to be written to.

        Each is the same long row from another place on, drawn every round: to anybody who takes inner products they
        are independent.
        """
        d, rng = scene.weights.numel(), scene.rng
        if len(self._pool) != d + _PLACES:
            self._pool = torch.randn(d + _PLACES, generator=rng).mul_(d**-0.5)
        places = torch.randperm(_PLACES, generator=rng)[: scene.f].tolist()
        return [self._pool[place : place + d] for place in places]

    def rows(self, scene: RoundView) -> Float32[Tensor, "f d"]:
        """Room for what the liars send."""
        shape = (scene.f, scene.weights.numel())
        if self._rows.shape != shape:
            self._rows = torch.empty(shape)
        return self._rows

    def apart(self, scene: RoundView, row: Float32[Tensor, " d"]) -> Sequence[Submission]:
        """`row` from every liar, with noise enough that each has a vote of its own."""
        return self._around(scene, row, [VOTE] * scene.f)

    def alike(self, scene: RoundView, row: Float32[Tensor, " d"]) -> Sequence[Submission]:
        """`row` from the first, and from the others nearly that: not the same bytes, but the same computation."""
        return self._around(scene, row, [0.0, *[_WHISPER] * (scene.f - 1)])

    def _around(self, scene: RoundView, row: Tensor, amounts: Sequence[float]) -> Sequence[Submission]:
        length, rows = float(row.norm()), self.rows(scene)
        for out, noise, amount in zip(rows, self.noise(scene), amounts, strict=True):
            torch.add(row, noise, alpha=amount * length, out=out)
        return self.sealed(scene)

    def sealed(self, scene: RoundView) -> Sequence[Submission]:
        """The rows as answers."""
        return [seal(order, row) for order, row in zip(scene.orders, self._rows, strict=True)]


def seal(order: Order, row: Float32[Tensor, " d"]) -> Submission:
    """The answer that holds `row`, in the order's codec; in fp32 it is the row's own memory."""
    schema = order.model.schema()
    codec = answer_codec(order, schema)
    return Submission(codec.header(schema), codec.encode(row), codec.name, Digest(order.parent))
