"""BLAKE3 of blobs and models, SHA-256 of orders.

BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020) is a tree hash: a gigabyte costs a core about 0.15 s.
"""

import hashlib
import math
from collections.abc import Iterable

from blake3 import blake3

from fedgpt2.types import Digest, Schema, WorkId

__all__ = ["blob_digest", "model_digest", "work_id"]


def blob_digest(*parts: bytes | bytearray | memoryview, threads: int = 1) -> Digest:
    """BLAKE3 of the parts one after another."""
    hasher = blake3(max_threads=threads)
    for part in parts:
        hasher.update(part)
    return Digest(hasher.hexdigest())


def model_digest(schema: Schema, data: memoryview, threads: int = 1) -> Digest:
    """Digest of a model's weights.

    `data` holds every tensor of `schema`, little-endian fp32, in ASCII name order and nothing else. The digest is
    BLAKE3 of one line a tensor: its name, a space, its shape (decimal, comma-separated), a space, the BLAKE3 of its
    bytes in hex, a newline. Raises ValueError if the sizes do not agree.
    """
    return Digest(blake3("".join(_lines(schema, data.cast("B"), threads)).encode()).hexdigest())


def _lines(schema: Schema, data: memoryview, threads: int) -> Iterable[str]:
    start, hasher = 0, blake3(max_threads=threads)  # one for all tensors, for each starts threads of its own
    for name, shape in sorted(schema.items()):
        end = start + 4 * math.prod(shape)
        digest = hasher.update(data[start:end]).hexdigest()
        hasher.reset()
        yield f"{name} {','.join(map(str, shape))} {digest}\n"
        start = end
    if start != data.nbytes:
        raise ValueError(f"{data.nbytes} bytes of weights, {start} in the schema")


def work_id(order: bytes | str) -> WorkId:
    """SHA-256 of an order's payload bytes: the name of the work, the same wherever it is asked for."""
    return WorkId(hashlib.sha256(order.encode() if isinstance(order, str) else order).hexdigest())
