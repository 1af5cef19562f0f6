"""A codec of variable length for tests: fp32 values through zlib, one tensor of bytes in the body."""

import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgpt2.codec import CODECS, Payload
from fedgpt2.errors import ProtocolError, Reason
from fedgpt2.protocol.tensors import Layout
from fedgpt2.types import Schema

NAME = "deflate"
_HEADER = '{"bytes":{"data_offsets":[0,%d],"dtype":"U8","shape":[%d]}}'


def _size(schema: Schema) -> int:
    return 4 * sum(int(torch.tensor(shape).prod()) if shape else 1 for shape in schema.values())


@dataclass(frozen=True)
class Deflate:
    """Lossless; at most a little longer than the values themselves."""

    name: str = NAME
    relative_error: float = 0.0
    exact: bool = True

    def size_bounds(self, schema: Schema) -> tuple[int, int]:
        size = _size(schema)
        return 1, size + size // 100 + 64

    def longest_body(self, schema: Schema) -> int:
        return self.size_bounds(schema)[1] + 256

    def buffer(self, flat: Tensor) -> None:
        return None

    def write(self, schema: Schema, flat: Tensor, scratch: Tensor | None = None) -> Payload:
        data = zlib.compress(flat.numpy().tobytes(), 1)
        text = (_HEADER % (len(data), len(data))).encode()
        return Payload(struct.pack("<Q", len(text)) + text, memoryview(bytearray(data)))

    def open(self, header: bytes, schema: Schema, data_bytes: int) -> Layout:
        if header != (_HEADER % (data_bytes, data_bytes)).encode():
            raise ProtocolError("not one tensor of bytes", Reason.WRONG_NAMES)
        return Layout("U8", {"bytes": (0, data_bytes)}, data_bytes)

    def view(self, layout: Layout, data: memoryview) -> None:
        return None

    def decode(self, layout: Layout, schema: Schema, data: memoryview, out: Tensor | None = None) -> Tensor:
        unpacker = zlib.decompressobj()
        values = unpacker.decompress(data, _size(schema))  # never more than the values take
        if len(values) != _size(schema) or not unpacker.eof:
            raise ProtocolError("not the values of this model", Reason.WRONG_LENGTH)
        received = torch.frombuffer(bytearray(values), dtype=torch.float32)
        return received if out is None else out.copy_(received)

    def round_(self, flat: Tensor, scratch: Tensor | None = None) -> None:
        pass


def register() -> None:
    """Make the codec known to this process; may be called again."""
    if NAME not in CODECS.names:
        CODECS.register(NAME, Deflate())
