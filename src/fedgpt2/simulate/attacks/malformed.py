"""Liars whose answers are wrong as messages, or are none: what admission is there for.

What is wrong does not depend on any gradient; it is made up once and sent for ever.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedgpt2.errors import PeerError, Reason, Refused
from fedgpt2.miner.orders import answer_codec
from fedgpt2.protocol.messages import Order
from fedgpt2.protocol.tensors import write_header
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.types import Digest, Schema

__all__ = ["HEADERS", "VALUES", "Headers", "Late", "Oversize", "Stale", "Values", "misnamed", "mistyped", "reshaped"]

_NOBODYS = Digest("0" * 64)


@dataclass
class Values:
    """Rows of the same values every round, a little different from liar to liar."""

    fill: Callable[[Tensor, int], object]  # a row of zeros, which liar
    _kept: list[Tensor] = field(default_factory=list, init=False)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The rows."""
        for i in range(len(self._kept), scene.f):
            self._kept.append(torch.zeros_like(scene.weights))
            self.fill(self._kept[i], i)
        return [seal(order, row) for order, row in zip(scene.orders, self._kept, strict=False)]


def _one(value: float) -> Callable[[Tensor, int], object]:
    return lambda row, i: row[i % len(row)].fill_(value)


VALUES: Mapping[str, Callable[[Tensor, int], object]] = {
    "zero": lambda row, i: row[i % len(row)].fill_(1e-30),  # all zeros twice would be one answer twice
    "nan": _one(float("nan")),
    "inf": _one(float("inf")),
    "denormal": lambda row, i: row.fill_(1e-40 * (i + 1)),
}


@dataclass(frozen=True)
class Headers:
    """Zeros under a header that describes something else in as many bytes."""

    header: Callable[[Order], bytes]

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The same from each: it is refused before its bytes are looked at."""
        honest = [seal(order, torch.zeros_like(scene.weights)) for order in scene.orders[:1]]
        return [replace(honest[0], header=self.header(order), parent=Digest(order.parent)) for order in scene.orders]


def misnamed(order: Order) -> bytes:
    """One tensor under another name."""
    schema = dict(order.model.schema())
    schema["wte.wait"] = schema.pop("wte.weight")
    return write_header(schema, _dtype(order))


def reshaped(order: Order) -> bytes:
    """The embedding transposed."""
    return write_header(_transposed(order.model.schema()), _dtype(order))


def mistyped(order: Order) -> bytes:
    """Integers of the size of the floats asked for."""
    dtype = _dtype(order)
    header = write_header(order.model.schema(), dtype)
    other = {"F32": "I32", "BF16": "I16"}[dtype]
    return header.replace(f'"{dtype}"'.encode(), f'"{other}"'.encode()).ljust(len(header))


HEADERS: Mapping[str, Callable[[Order], bytes]] = {
    "wrong_names": misnamed,
    "wrong_shapes": reshaped,
    "wrong_dtypes": mistyped,
}


@dataclass
class Oversize:
    """A body one byte longer than the order's cap."""

    _zeros: bytearray = field(default_factory=bytearray, init=False)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """Zeros without end, nearly."""
        order = scene.orders[0]
        codec = answer_codec(order, order.model.schema())
        header = codec.header(order.model.schema())
        wanted = order.caps.answer_bytes + 1 - len(header)
        if len(self._zeros) != wanted:
            self._zeros = bytearray(wanted)
        data = memoryview(self._zeros)
        return [Submission(header, data, codec.name, Digest(order.parent)) for order in scene.orders]


@dataclass
class Stale:
    """An answer that says itself that it is over the weights of the round before; in the first, over nobody's.

    Its numbers are zeros: nobody fetches them.
    """

    _parent: Digest = field(default=_NOBODYS, init=False)

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """The same from each."""
        parent, self._parent = self._parent, Digest(scene.orders[0].parent)
        sealed = seal(scene.orders[0], torch.zeros_like(scene.weights))
        return [replace(sealed, parent=parent) for _ in scene.orders]


@dataclass(frozen=True)
class Late:
    """Nothing by the deadline."""

    detail: str

    def __call__(self, scene: RoundView) -> Sequence[Submission | PeerError]:
        """No answer from any."""
        return [Refused(Reason.LATE, self.detail) for _ in scene.orders]


def _dtype(order: Order) -> str:
    return answer_codec(order, order.model.schema()).dtype


def _transposed(schema: Schema) -> Schema:
    rows, columns = schema["wte.weight"]
    return {**schema, "wte.weight": (columns, rows)}
