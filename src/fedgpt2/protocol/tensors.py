"""The layout of a blob of tensors: the safetensors format, checked against a schema before anything is allocated.

A body is an 8-byte little-endian header length, the JSON header, and the tensors' bytes. Senders write the canonical
header (`write_header`); receivers accept any header that describes exactly the expected tensors.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from fedgpt2.errors import ProtocolError, Reason
from fedgpt2.types import Schema

__all__ = ["ITEM_BYTES", "PREFIX", "Layout", "data_bytes", "header_length", "names", "read_header", "write_header"]

ITEM_BYTES: Mapping[str, int] = {"F32": 4, "BF16": 2}
_ALIGNMENT = 64  # data begins on a cache line, so that views of it are aligned
PREFIX = 8  # bytes before a header, which say its length


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the data region: name -> (first byte, end)."""

    dtype: str
    spans: Mapping[str, tuple[int, int]]
    data_bytes: int

    @property
    def canonical(self) -> bool:
        """Whether the tensors lie in ASCII name order, so that the data region can be used as it is."""
        starts = [self.spans[name][0] for name in sorted(self.spans)]
        return starts == sorted(starts)


def data_bytes(schema: Schema, dtype: str) -> int:
    """Bytes of the data region."""
    return ITEM_BYTES[dtype] * sum(prod(shape) for shape in schema.values())


def write_header(schema: Schema, dtype: str) -> bytes:
    """The canonical header, length prefix included: tensors in ASCII name order, padded with spaces to 64 bytes."""
    entries: dict[str, object] = {}
    start = 0
    for name, shape in sorted(schema.items()):
        end = start + ITEM_BYTES[dtype] * prod(shape)
        entries[name] = {"data_offsets": [start, end], "dtype": dtype, "shape": list(shape)}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def header_length(prefix: bytes, limit: int) -> int:
    """Length of the JSON header from the first 8 bytes of a body. Raises ProtocolError over `limit`."""
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= limit:
        raise ProtocolError(f"header of {length} bytes, the limit is {limit}", Reason.TOO_LARGE)
    return int(length)


def names(text: bytes) -> frozenset[str]:
    """What the tensors of a JSON header are called; nothing else of it is checked. Raises ProtocolError."""
    return frozenset(_entries(text))


def read_header(text: bytes, schema: Schema, dtype: str) -> Layout:
    """Layout described by a JSON header, if it is exactly `schema` in `dtype`.

    Raises ProtocolError with bad_message, wrong_names, wrong_shape or wrong_dtype, blamed on the sender.
    """
    entries = _entries(text)
    if entries.keys() != schema.keys():
        raise ProtocolError(_difference(entries.keys(), schema.keys()), Reason.WRONG_NAMES)
    spans = {name: _span(name, entry, schema[name], dtype) for name, entry in entries.items()}
    _check_tiling(spans)
    return Layout(dtype, spans, data_bytes(schema, dtype))


def _entries(text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"header is not JSON: {str(error)[:100]}") from error
    if not isinstance(header, dict):
        raise ProtocolError("header is not an object")
    header.pop("__metadata__", None)
    return header


def _difference(got: object, wanted: object) -> str:
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))  # type: ignore[call-overload]
    named = f"lacks {missing[0]}" if missing else f"has {extra[0][:80]!r} too many"
    return f"tensors: {named} ({len(missing)} missing, {len(extra)} unknown)"


def _span(name: str, entry: object, shape: tuple[int, ...], dtype: str) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ProtocolError(f"{name}: not a tensor entry")
    if entry["dtype"] != dtype:
        raise ProtocolError(f"{name}: dtype {str(entry['dtype'])[:20]}, not {dtype}", Reason.WRONG_DTYPE)
    if entry["shape"] != list(shape):
        raise ProtocolError(f"{name}: shape {str(entry['shape'])[:60]}, not {list(shape)}", Reason.WRONG_SHAPE)
    offsets = entry["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(x) is int and x >= 0 for x in offsets)):
        raise ProtocolError(f"{name}: bad offsets")
    if offsets[1] - offsets[0] != ITEM_BYTES[dtype] * prod(shape):
        raise ProtocolError(f"{name}: offsets do not fit its shape")
    return offsets[0], offsets[1]


def _check_tiling(spans: Mapping[str, tuple[int, int]]) -> None:
    end = 0
    for start, stop in sorted(spans.values()):
        if start != end:
            raise ProtocolError("tensors overlap or leave gaps")
        end = stop
