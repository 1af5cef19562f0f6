"""Scratch buffers for attacks: noise drawn once, rows allocated once, and the body that an order asks for.

Letters: f hostile miners, d parameters.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.miner.orders import answer_codec
from fedgpt2.protocol.messages import Order
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.types import Digest

__all__ = ["DISTINCT", "SendBuffers", "seal"]

DISTINCT = 0.25  # noise over its row's norm: enough to be in no cluster, too little to change the row's effect
_COPY = 0.01  # the same for rows that are in one cluster
_OFFSETS = 1 << 16


class SendBuffers:
    """Keeps what is too slow to allocate every round; rows are overwritten at the next call."""

    def __init__(self) -> None:
        self._pool = torch.empty(0)
        self._rows = torch.empty(0, 0)

    def noise(self, view: RoundView) -> list[Float32[Tensor, " d"]]:
        """White noise of norm about 1 for each hostile miner; read only.

        All are windows of one long row at offsets drawn every round, so that their inner products are those of
        independent noise.
        """
        d, rng = view.weights.numel(), view.rng
        if len(self._pool) != d + _OFFSETS:
            self._pool = torch.randn(d + _OFFSETS, generator=rng).mul_(d**-0.5)
        offsets = torch.randperm(_OFFSETS, generator=rng)[: view.f].tolist()
        return [self._pool[offset : offset + d] for offset in offsets]

    def rows(self, view: RoundView) -> Float32[Tensor, "f d"]:
        """Memory for one row per hostile miner."""
        shape = (view.f, view.weights.numel())
        if self._rows.shape != shape:
            self._rows = torch.empty(shape)
        return self._rows

    def apart(self, view: RoundView, row: Float32[Tensor, " d"]) -> Sequence[Submission]:
        """`row` from every miner, each with noise enough for a vote of its own."""
        return self._around(view, row, [DISTINCT] * view.f)

    def alike(self, view: RoundView, row: Float32[Tensor, " d"]) -> Sequence[Submission]:
        """`row` from the first miner and near-copies of it from the others: different bytes, but one vote."""
        return self._around(view, row, [0.0, *[_COPY] * (view.f - 1)])

    def _around(self, view: RoundView, row: Tensor, amounts: Sequence[float]) -> Sequence[Submission]:
        norm, rows = float(row.norm()), self.rows(view)
        for out, noise, amount in zip(rows, self.noise(view), amounts, strict=True):
            torch.add(row, noise, alpha=amount * norm, out=out)
        return self.sealed(view)

    def sealed(self, view: RoundView) -> Sequence[Submission]:
        """The rows as submissions."""
        return [seal(order, row) for order, row in zip(view.orders, self._rows, strict=True)]


def seal(order: Order, row: Float32[Tensor, " d"]) -> Submission:
    """The submission that holds `row`, in the order's codec; in fp32 it shares the row's memory."""
    schema = order.model.schema()
    codec = answer_codec(order, schema)
    body = codec.write(schema, row)
    return Submission(body.header, body.data, codec.name, Digest(order.parent))
