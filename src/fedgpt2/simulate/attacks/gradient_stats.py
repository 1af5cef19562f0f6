"""Mean, standard deviation and inner products of the honest gradients, in one pass.

Letters: h honest gradients, d parameters, k further directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["Moments", "moments"]

_BLOCK = 1 << 15  # values of each row at a time: with 16 rows 2 MiB, which fits the cache
_LANES = 4  # rows are padded to a multiple: a product of 13 rows takes twice as long as one of 16


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of h gradients, coordinate by coordinate, and a span about that mean.

    The span's vectors are the h gradients, then mean + std, then mean + each further direction.
    """

    mean: Float32[Tensor, " d"]
    std: Float32[Tensor, " d"]
    span: Span
    h: int

    @property
    def honest(self) -> Span:
        """The span of the h gradients alone."""
        return self.span.mixed(np.eye(self.h, self.span.m))

    def point(self, mean: float, std: float = 0.0, along: Sequence[float] = ()) -> Float64:
        """Coefficients, one per vector of the span, of mean * mean + std * std + sum_j along_j direction_j."""
        coefficients = np.zeros(self.span.m)
        coefficients[self.h] = std
        coefficients[self.h + 1 : self.h + 1 + len(along)] = along
        coefficients[: self.h] = (mean - std - sum(along)) / self.h
        return coefficients


def moments(honest: Float32[Tensor, "h d"], directions: Sequence[Float32[Tensor, " d"]] = ()) -> Moments:
    """The moments of `honest` (at least one row; squares of norms must fit fp32).

    Inner products are of deviations from the mean, so that distances have a relative error of 1e-5 however close the
    gradients are. Sums are in fp32 within a block and in float64 across blocks.
    """
    h, d = honest.shape
    rows = h + 2 + len(directions)
    mean, std = torch.empty(d), torch.empty(d)
    buffer = torch.zeros(-(-rows // _LANES) * _LANES, min(d, _BLOCK))
    total = torch.zeros(len(buffer), len(buffer), dtype=torch.float64)
    for start in range(0, d, _BLOCK):
        part = slice(start, min(start + _BLOCK, d))
        block = buffer[:, : part.stop - part.start]
        centre, apart = block[0], block[1 : h + 1]
        torch.mean(honest[:, part], 0, out=centre)
        torch.sub(honest[:, part], centre, out=apart)
        torch.sum(apart.square(), 0, out=block[h + 1]).div_(max(1, h - 1)).sqrt_()
        for row, direction in zip(block[h + 2 :], directions, strict=False):
            row.copy_(direction[part])
        mean[part], std[part] = centre, block[h + 1]
        total += block @ block.T
    count = rows - 1
    return Moments(mean, std, Span(total[:rows, :rows].numpy(), np.ones(count), np.eye(count)), h)
