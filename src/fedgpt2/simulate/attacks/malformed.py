"""Attacks whose submissions are invalid messages or invalid values, or that send nothing: admission stops them.

Nothing invalid depends on a gradient, so it is made once and sent every round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedgpt2.codec import Dense
from fedgpt2.errors import PeerError, Reason, Refused
from fedgpt2.miner.orders import answer_codec
from fedgpt2.protocol.messages import Order
from fedgpt2.protocol.tensors import write_header
from fedgpt2.simulate.attacks.base import RoundView, Submission
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.types import Digest, Schema

__all__ = [
    "Headers",
    "Late",
    "Oversize",
    "Stale",
    "Values",
    "fill_denormal",
    "fill_one",
    "wrong_dtypes",
    "wrong_names",
    "wrong_shapes",
]

_UNKNOWN = Digest("0" * 64)


@dataclass
class Values:
    """Rows of the same values every round, a little different from miner to miner."""

    fill: Callable[[Tensor, int], object]  # fills a row of zeros, for the miner of an index
    _kept: list[Tensor] = field(default_factory=list, init=False)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The rows."""
        for i in range(len(self._kept), view.f):
            self._kept.append(torch.zeros_like(view.weights))
            self.fill(self._kept[i], i)
        return [seal(order, row) for order, row in zip(view.orders, self._kept, strict=False)]


def fill_one(value: float) -> Callable[[Tensor, int], object]:
    """Fills one value of a row, another one for each miner; with 1e-30 rows are as good as zero, but no duplicates."""
    return lambda row, i: row[i % len(row)].fill_(value)


def fill_denormal(row: Tensor, i: int) -> Tensor:
    """Fill a row with denormal numbers."""
    return row.fill_(1e-40 * (i + 1))


@dataclass(frozen=True)
class Headers:
    """Zeros under a header that describes something else in as many bytes."""

    header: Callable[[Order], bytes]

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The same from each miner: it is refused before its bytes are compared."""
        honest = [seal(order, torch.zeros_like(view.weights)) for order in view.orders[:1]]
        return [replace(honest[0], header=self.header(order), parent=Digest(order.parent)) for order in view.orders]


def wrong_names(order: Order) -> bytes:
    """One tensor under another name."""
    schema = dict(order.model.schema())
    schema["wte.wait"] = schema.pop("wte.weight")
    return write_header(schema, _dtype(order))


def wrong_shapes(order: Order) -> bytes:
    """The embedding transposed."""
    return write_header(_transposed(order.model.schema()), _dtype(order))


def wrong_dtypes(order: Order) -> bytes:
    """Integers of the size of the floats asked for."""
    dtype = _dtype(order)
    header = write_header(order.model.schema(), dtype)
    other = {"F32": "I32", "BF16": "I16"}[dtype]
    return header.replace(f'"{dtype}"'.encode(), f'"{other}"'.encode()).ljust(len(header))


@dataclass
class Oversize:
    """A body one byte longer than the order's cap."""

    _zeros: bytearray = field(default_factory=bytearray, init=False)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """Zeros."""
        order = view.orders[0]
        codec = answer_codec(order, order.model.schema())
        header = write_header(order.model.schema(), _dtype(order))
        wanted = order.caps.answer_bytes + 1 - len(header)
        if len(self._zeros) != wanted:
            self._zeros = bytearray(wanted)
        data = memoryview(self._zeros)
        return [Submission(header, data, codec.name, Digest(order.parent)) for order in view.orders]


@dataclass
class Stale:
    """A submission that names the weights of the round before; in the first round, weights that never were.

    Its values are zeros: the validator does not fetch them.
    """

    _parent: Digest = field(default=_UNKNOWN, init=False)

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """The same from each miner."""
        parent, self._parent = self._parent, Digest(view.orders[0].parent)
        sealed = seal(view.orders[0], torch.zeros_like(view.weights))
        return [replace(sealed, parent=parent) for _ in view.orders]


@dataclass(frozen=True)
class Late:
    """Nothing by the deadline."""

    detail: str

    def __call__(self, view: RoundView) -> Sequence[Submission | PeerError]:
        """No submission from any miner."""
        return [Refused(Reason.LATE, self.detail) for _ in view.orders]


def _dtype(order: Order) -> str:
    codec = answer_codec(order, order.model.schema())
    return codec.dtype if isinstance(codec, Dense) else "F32"


def _transposed(schema: Schema) -> Schema:
    rows, columns = schema["wte.weight"]
    return {**schema, "wte.weight": (columns, rows)}
