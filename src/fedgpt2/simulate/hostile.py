"""A miner whose every answer is wrong, in turn in its shape, its values and its age.

It is the real miner, signatures and all, with another `Packer`; and it computes nothing: what it sends is made up.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fedgpt2 import codec
from fedgpt2.miner.packer import Outcome, describe, make_blob
from fedgpt2.model.state import FlatState
from fedgpt2.network.blobs import Blob
from fedgpt2.protocol.messages import Contribution, Order
from fedgpt2.types import ModelShape, Schema, WorkId

__all__ = ["ATTACKS", "HostilePacker", "no_gradient"]

ATTACKS = ("wrong shape", "NaN", "stale")  # in this order


class HostilePacker:
    """Answers with the next attack of `ATTACKS` each time it is asked."""

    def __init__(self) -> None:
        self._turn = 0
        self._parent = ""  # of the order before

    def pack(self, order: Order, work_id: WorkId, result: Outcome, gradient: FlatState) -> tuple[Contribution, Blob]:
        """As `Packer` says, but for what is sent."""
        attack, before = ATTACKS[self._turn % len(ATTACKS)], self._parent or order.parent
        self._turn, self._parent = self._turn + 1, order.parent
        if attack == "wrong shape":
            blob = _blob(_reshaped(gradient.schema), gradient.flat)
        elif attack == "NaN":
            blob = _blob(gradient.schema, torch.full_like(gradient.flat, float("nan"), device="cpu"))
        else:
            blob = _blob(gradient.schema, gradient.flat)
        contribution = describe(order, work_id, result, blob.ref)
        if attack == "stale":
            contribution = msgspec.structs.replace(contribution, parent=before)
        return contribution, blob


def no_gradient(
    weights: Mapping[str, NDArray[np.float32]], tokens: NDArray[np.int64], shape: ModelShape
) -> tuple[dict[str, NDArray[np.float32]], float]:
    """A plugin strategy that does no work: small numbers for a gradient, and a loss to be proud of."""
    return {name: np.full(view.shape, 1e-6, np.float32) for name, view in weights.items()}, 1.0


def _blob(schema: Schema, flat: torch.Tensor) -> Blob:
    fp32 = codec.get("fp32")
    return make_blob(fp32.name, fp32.header(schema), fp32.encode(flat.cpu()))


def _reshaped(schema: Schema) -> Schema:
    """The schema with its embedding transposed: as many bytes, another shape."""
    rows, columns = schema["wte.weight"]
    return {**schema, "wte.weight": (columns, rows)}
