"""Codecs that send every value: fp32 as it is, bf16 by rounding to nearest even.

Letters: d parameters.
"""

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor

from fedgpt2.protocol.tensors import ITEM_BYTES, Layout, data_bytes, write_header
from fedgpt2.types import Schema

__all__ = ["Codec"]

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Codec:
    """One dense codec, for states and gradients alike.

    `relative_error` bounds |decode(encode(x)) - x| / |x| for every normal fp32 value that does not overflow.
    """

    name: str
    dtype: str  # name of the item type in a safetensors header
    relative_error: float

    def header(self, schema: Schema) -> bytes:
        """Length prefix and JSON header of a body of `schema`."""
        return write_header(schema, self.dtype)

    def data_bytes(self, schema: Schema) -> int:
        """Bytes of a body's data region."""
        return data_bytes(schema, self.dtype)

    @property
    def exact(self) -> bool:
        """Whether a receiver has the very values that were sent."""
        return self.relative_error == 0

    def buffer(self, flat: Float32[Tensor, " d"]) -> BFloat16[Tensor, " d"] | None:
        """Room on the CPU for `encode` and `round_` of what is as long as `flat`; None where they need none."""
        return None if self.exact else torch.empty(flat.shape, dtype=_TORCH[self.dtype])

    def round_(self, flat: Float32[Tensor, " d"], by: BFloat16[Tensor, " d"] | None = None) -> None:
        """Make `flat`, wherever it is, what a receiver has of it: decode(encode(flat)); by way of `by`, if given."""
        if not self.exact:
            flat.copy_(flat.to(_TORCH[self.dtype]) if by is None else by.copy_(flat))

    def encode(self, flat: Float32[Tensor, " d"], out: BFloat16[Tensor, " d"] | None = None) -> memoryview:
        """The data region for `flat`, tensors in ASCII name order on the CPU.

        fp32 is a view of `flat` itself: it changes when `flat` does. bf16 is rounded into `out`, or a new buffer.
        """
        if self.dtype == "F32":
            return _memory(flat)
        if out is None:
            out = torch.empty(flat.shape, dtype=_TORCH[self.dtype])
        return _memory(out.copy_(flat))

    def decode(
        self, layout: Layout, schema: Schema, data: memoryview, out: Float32[Tensor, " d"] | None = None
    ) -> Float32[Tensor, " d"]:
        """Values of a received data region as fp32, in ASCII name order.

        fp32 in canonical order is a view of `data`; anything else is written into `out`, or a new buffer.
        """
        received = torch.frombuffer(data, dtype=_TORCH[self.dtype])
        if self.dtype == "F32" and layout.canonical:
            return received
        if out is None:
            out = torch.empty(received.shape, dtype=torch.float32)
        if layout.canonical:
            return out.copy_(received)
        return self._reorder(layout, schema, received, out)

    def _reorder(self, layout: Layout, schema: Schema, received: Tensor, out: Tensor) -> Tensor:
        item, start = ITEM_BYTES[self.dtype], 0
        for name in sorted(schema):
            first, end = (byte // item for byte in layout.spans[name])
            out[start : start + end - first] = received[first:end]
            start += end - first
        return out


def _memory(tensor: Tensor) -> memoryview:
    """Bytes of a contiguous CPU tensor, without a copy."""
    return tensor.view(torch.uint8).numpy().data
