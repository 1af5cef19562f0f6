"""An attack of your own: hostile miners that push the mean against its largest coordinates.

    fedgpt2 simulate --miners 8 --byzantine 2 --attack examples.attack:against_the_largest

An attack is a function of the honest gradients [h, d] of the round and f, the number of hostile miners. It returns
their rows [f, d].
"""

import torch
from torch import Tensor


def against_the_largest(honest: Tensor, f: int) -> Tensor:
    """The honest mean with the largest tenth of its coordinates flipped; noise keeps the rows from being merged."""
    row = honest.mean(0)
    largest = row.abs().topk(len(row) // 10).indices
    row[largest] *= -2
    noise = torch.randn(f, len(row), generator=torch.Generator().manual_seed(f))
    return row + 0.25 * row.norm() * noise / noise.norm(dim=1, keepdim=True)
