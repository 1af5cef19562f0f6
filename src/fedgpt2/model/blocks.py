"""Several vectors of d parameters looked at together, a cache full of each at a time; never all of them in memory.

Letters: n vectors, d parameters, c pieces of p values each.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["blocks"]

_VALUES = 1 << 21  # of all vectors of a block together: 8 MiB, so that it stays in the cache between copy and product
_FEWEST = 2  # pieces of each vector a block, however many vectors there are
_PIECE = 1 << 12  # values: fp32 sums over so many products are right to 1e-7 of the lengths


def blocks(
    vectors: Sequence[Float[Tensor, " d"]], dtype: torch.dtype = torch.float32
) -> Iterator[Float[Tensor, "c n p"]]:
    """Copies of the vectors, cut into pieces, the same piece of each side by side; at last what is no whole piece.

    A block may be written to, and is gone with the next one. Matrix products of blocks are twice as fast as those of
    rows that lie apart, by oneDNN, and as fast as any by MKL.
    """
    n, pieces = len(vectors), vectors[0].numel() // _PIECE
    most = min(pieces, max(_FEWEST, _VALUES // n // _PIECE))
    whole = [vector[: pieces * _PIECE].view(pieces, _PIECE) for vector in vectors]
    buffer = torch.empty(most, n, _PIECE, dtype=dtype)
    for first in range(0, pieces, max(1, most)):
        parts = [vector[first : first + most] for vector in whole]
        yield torch.stack(parts, 1, out=buffer[: len(parts[0])])
    rest = [vector[pieces * _PIECE :] for vector in vectors]
    if len(rest[0]):
        yield torch.stack(rest)[None].to(dtype)
