"""An aggregation rule of your own: the mean of the rows with the largest cosines to the median row.

    fedgpt2 simulate --miners 8 --aggregation.rule examples.aggregation_rule:aligned_mean

A rule is a function of the rows [n, d] and f, the number of them that may be hostile. It returns the aggregate [d].
Rows that are not finite are left out before, and near-identical rows are merged into one.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def aligned_mean(rows: Tensor, f: int) -> Tensor:
    """Mean of the n - f rows that point most in the direction of the coordinatewise median."""
    rows = torch.nn.functional.normalize(rows, dim=1) * rows.norm(dim=1).median()
    alignment = cosine_similarity(rows, rows.median(0).values[None], dim=1)
    return rows[alignment.topk(len(rows) - f).indices].mean(0)
