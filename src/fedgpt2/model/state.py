"""All parameters of a model in one contiguous fp32 buffer, with a named view of each.

The buffer is laid out as the data region of our wire bodies: little-endian fp32 tensors one after the
other in ASCII name order. So a received body, the model's weights, its gradient and what is sent are the
same bytes, and none of them is ever copied on a CPU.
"""

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedgpt2.types import Schema

__all__ = ["FlatState"]


class FlatState:
    """Named fp32 tensors that share one contiguous buffer.

    `flat` is the buffer, [d] fp32; `views[name]` is the part of it that holds `name`, in its shape.
    Writing through any of them, or through `memory()`, writes the same storage.
    """

    schema: Schema
    flat: Tensor
    views: Mapping[str, Tensor]

    def __init__(self, schema: Schema, flat: Float[Tensor, " d"] | None = None) -> None:
        """Views over `flat`, or over a new buffer of zeros on the CPU.

        Raises ValueError unless `flat` is contiguous fp32 of exactly the schema's size.
        """
        ordered = dict(sorted(schema.items()))
        size = sum(prod(shape) for shape in ordered.values())
        if flat is None:
            flat = torch.zeros(size)
        if flat.dtype != torch.float32 or flat.shape != (size,) or not flat.is_contiguous():
            raise ValueError(f"need {size} contiguous fp32 values, got {flat.dtype} {tuple(flat.shape)}")
        self.schema = MappingProxyType(ordered)
        self.flat = flat.detach()
        self.views = MappingProxyType(_split(self.flat, ordered))

    @property
    def device(self) -> torch.device:
        """Where the buffer lives."""
        return self.flat.device

    def memory(self) -> memoryview:
        """The buffer's bytes: a writable, zero-copy uint8 view. Raises ValueError off the CPU."""
        if self.flat.device.type != "cpu":
            raise ValueError("only a state on the CPU has memory to show; use to('cpu') first")
        array: np.ndarray[Any, np.dtype[np.float32]] = self.flat.numpy()
        return array.data.cast("B")

    def to(self, device: torch.device | str) -> "FlatState":
        """This state on `device`: itself when it is there already, otherwise a copy."""
        moved = self.flat.to(device)
        return self if moved is self.flat else FlatState(self.schema, moved)

    def clone(self) -> "FlatState":
        """A copy with its own buffer on the same device."""
        return FlatState(self.schema, self.flat.clone())

    def empty_like(self) -> "FlatState":
        """A state of zeros with the same schema on the same device."""
        return FlatState(self.schema, torch.zeros_like(self.flat))

    def copy_(self, other: "FlatState") -> "FlatState":
        """Take over the values of `other`, from any device. Raises ValueError on another schema."""
        if other.schema != self.schema:
            raise ValueError("states of different schemas")
        self.flat.copy_(other.flat)
        return self

    def zero_(self) -> "FlatState":
        """Set every value to zero."""
        self.flat.zero_()
        return self

    def norm(self) -> float:
        """Euclidean norm of all values, summed in float64 block by block (fp32 sums are 1.5 % off at 124M)."""
        total = torch.zeros((), dtype=torch.float64, device=self.flat.device)
        for block in torch.split(self.flat, _BLOCK):
            wide = block.double()
            total += wide.dot(wide)
        return float(total.sqrt())


_BLOCK = 1 << 18  # values a block: 1 MiB of fp32, so that its float64 copy stays in the cache


def _split(flat: Float[Tensor, " d"], schema: Schema) -> dict[str, Tensor]:
    views, offset = {}, 0
    for name, shape in schema.items():
        size = prod(shape)
        views[name] = flat[offset : offset + size].view(shape)
        offset += size
    return views
