"""From a gradient to the signed description and the blob that answer an order."""

from dataclasses import dataclass
from typing import Protocol

import torch

from fedgpt2.link.blobs import Blob
from fedgpt2.miner.orders import answer_codec
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import BlobRef, Contribution, Order
from fedgpt2.types import WorkId

__all__ = ["AnswerEncoder", "ComputeResult", "HonestEncoder", "describe"]


@dataclass(frozen=True)
class ComputeResult:
    """What a computation claims: mean loss (nats a token), target tokens, seconds it took."""

    loss: float
    tokens: int
    seconds: float


class AnswerEncoder(Protocol):
    """How an answer is made; the seam for miners that do it otherwise."""

    def pack(
        self, order: Order, work_id: WorkId, result: ComputeResult, gradient: FlatState
    ) -> tuple[Contribution, Blob]:
        """The contribution to sign and the blob it names. Called in the compute thread.

        The blob may be a view of `gradient`, which stays as it is until the answer is given up.
        """
        ...


class HonestEncoder:
    """The gradient as it is, in the order's answer codec; fp32 is sent from the gradient's own memory."""

    def __init__(self) -> None:
        self._rounded: torch.Tensor | None = None

    def pack(
        self, order: Order, work_id: WorkId, result: ComputeResult, gradient: FlatState
    ) -> tuple[Contribution, Blob]:
        """As `AnswerEncoder` says."""
        codec = answer_codec(order, gradient.schema)
        if self._rounded is None or self._rounded.shape != gradient.flat.shape:
            self._rounded = codec.buffer(gradient.flat)
        body = codec.write(gradient.schema, gradient.flat, self._rounded)
        blob = Blob.of(codec.name, body.header, body.data, threads=torch.get_num_threads())
        return describe(order, work_id, result, blob.ref), blob


def describe(order: Order, work_id: WorkId, result: ComputeResult, blob: BlobRef) -> Contribution:
    """The contribution that answers `order` with `blob`."""
    return Contribution(
        run_id=order.run_id,
        round=order.round,
        work_id=work_id,
        parent=order.parent,
        sender=order.receiver,
        receiver=order.sender,
        blob=blob,
        claimed_loss=result.loss,
        tokens=result.tokens,
        seconds=result.seconds,
    )
