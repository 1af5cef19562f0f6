"""The interface of codecs: how the values of a state or a gradient become the body of a blob, and come back.

A body is a safetensors file (`protocol.tensors`): a header and a data region, whose length may depend on the values.
Error feedback (Seide et al., "1-bit stochastic gradient descent", 2014) fits around a codec: encode values + residual,
and keep the difference to what `decode` gives as the next residual.

Letters: d parameters.
"""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float32
from torch import Tensor

from fedgpt2.protocol.tensors import Layout
from fedgpt2.types import Schema

__all__ = ["Codec", "Payload"]


@dataclass(frozen=True)
class Payload:
    """An encoded body: length prefix and JSON header, then the data region."""

    header: bytes
    data: memoryview


class Codec(Protocol):
    """One way to encode all parameters of a model, fp32 [d] in ASCII name order, on the CPU."""

    @property
    def name(self) -> str:
        """The name that orders and settings use."""

    @property
    def relative_error(self) -> float:
        """Bound of |decode(encode(x)) - x| / |x| for every normal fp32 value that does not overflow."""

    @property
    def exact(self) -> bool:
        """Whether decoding gives the very values that were encoded."""

    def size_bounds(self, schema: Schema) -> tuple[int, int]:
        """Least and most bytes of a data region; receivers allocate no more than the most."""
        ...

    def longest_body(self, schema: Schema) -> int:
        """Most bytes of a body that `write` makes, header included."""
        ...

    def buffer(self, flat: Float32[Tensor, " d"]) -> Tensor | None:
        """Scratch memory for `write` and `round_`, allocated once by the caller; None where they need none."""
        ...

    def write(self, schema: Schema, flat: Float32[Tensor, " d"], scratch: Tensor | None = None) -> Payload:
        """The body for `flat`. Its data may be a view of `flat` or of `scratch`, and changes when they do."""
        ...

    def open(self, header: bytes, schema: Schema, data_bytes: int) -> Layout:
        """Layout of a data region of `data_bytes`, from a JSON header; nothing is allocated before it is checked.

        Raises ProtocolError: bad_message, wrong_names, wrong_shape, wrong_dtype or wrong_length.
        """
        ...

    def view(self, layout: Layout, data: memoryview) -> Float32[Tensor, " d"] | None:
        """The values as a view of a received data region, where it holds them as they are; else None."""
        ...

    def decode(
        self, layout: Layout, schema: Schema, data: memoryview, out: Float32[Tensor, " d"] | None = None
    ) -> Float32[Tensor, " d"]:
        """Values of a received data region: a view of it where it holds them as they are, else written into `out`.

        Without `out` a new buffer takes them. Raises ProtocolError for data that encodes no values.
        """
        ...

    def round_(self, flat: Float32[Tensor, " d"], scratch: Tensor | None = None) -> None:
        """Make `flat`, on any device, what a receiver has of it: decode(write(flat))."""
        ...
