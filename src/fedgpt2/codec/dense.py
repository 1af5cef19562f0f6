"""Codecs that send every value: fp32 as it is, bf16 by rounding to nearest even.

Letters: d parameters.
"""

from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor

from fedgpt2.codec.base import Payload
from fedgpt2.errors import ProtocolError, Reason
from fedgpt2.protocol.tensors import ITEM_BYTES, Layout, data_bytes, read_header, write_header
from fedgpt2.types import Schema

__all__ = ["Dense"]

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Dense:
    """A `Codec` that sends one item a value, in the dtype that its header names."""

    name: str
    dtype: str  # of a safetensors header
    relative_error: float

    def header(self, schema: Schema) -> bytes:
        """Length prefix and JSON header of a body of `schema`."""
        return write_header(schema, self.dtype)

    def data_bytes(self, schema: Schema) -> int:
        """Bytes of a body's data region."""
        return data_bytes(schema, self.dtype)

    def size_bounds(self, schema: Schema) -> tuple[int, int]:
        """As `Codec` says; the length is fixed."""
        size = self.data_bytes(schema)
        return size, size

    def longest_body(self, schema: Schema) -> int:
        """As `Codec` says."""
        return len(self.header(schema)) + self.data_bytes(schema)

    @property
    def exact(self) -> bool:
        """As `Codec` says."""
        return self.relative_error == 0

    def buffer(self, flat: Float32[Tensor, " d"]) -> BFloat16[Tensor, " d"] | None:
        """As `Codec` says: the values in another dtype."""
        return None if self.exact else torch.empty(flat.shape, dtype=_TORCH[self.dtype])

    def round_(self, flat: Float32[Tensor, " d"], scratch: Tensor | None = None) -> None:
        """As `Codec` says."""
        if not self.exact:
            flat.copy_(flat.to(_TORCH[self.dtype]) if scratch is None else scratch.copy_(flat))

    def write(self, schema: Schema, flat: Float32[Tensor, " d"], scratch: Tensor | None = None) -> Payload:
        """As `Codec` says."""
        return Payload(self.header(schema), self.encode(flat, scratch))

    def open(self, header: bytes, schema: Schema, data_bytes: int) -> Layout:
        """As `Codec` says."""
        layout = read_header(header, schema, self.dtype)
        if layout.data_bytes != data_bytes:
            raise ProtocolError(f"{data_bytes} bytes, its header means {layout.data_bytes}", Reason.WRONG_LENGTH)
        return layout

    def encode(self, flat: Float32[Tensor, " d"], out: Tensor | None = None) -> memoryview:
        """The data region for `flat`, tensors in ASCII name order on the CPU.

        fp32 is a view of `flat` itself: it changes when `flat` does. bf16 is rounded into `out`, or a new buffer.
        """
        if self.dtype == "F32":
            return _memory(flat)
        if out is None:
            out = torch.empty(flat.shape, dtype=_TORCH[self.dtype])
        return _memory(out.copy_(flat))

    def view(self, layout: Layout, data: memoryview) -> Float32[Tensor, " d"] | None:
        """As `Codec` says: fp32 in ASCII name order."""
        if self.dtype != "F32" or not layout.canonical:
            return None
        return torch.frombuffer(data, dtype=torch.float32)

    def decode(
        self, layout: Layout, schema: Schema, data: memoryview, out: Float32[Tensor, " d"] | None = None
    ) -> Float32[Tensor, " d"]:
        """As `Codec` says."""
        if (values := self.view(layout, data)) is not None:
            return values
        received = torch.frombuffer(data, dtype=_TORCH[self.dtype])
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
