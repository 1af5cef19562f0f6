"""Clusters of near-identical contributions, each of which gets one vote.

Independent gradients over different text lie far apart, because their noise differs. Two that nearly coincide are one
computation sent twice, and count once however many hotkeys send it.

"Near" is relative to the contributions' norm and to their typical distance. The norm alone would put all miners with
large batches, whose gradients hardly differ, into one cluster, and f hostile miners would outvote it. Every pair of a
cluster must be near (complete linkage): with chains of near pairs, hostile miners could join honest ones together.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgpt2.aggregation.span import Float64, Span
from fedgpt2.aggregation.stages import NormClip, shrink

__all__ = ["clusters", "one_vote"]

NEAR = 0.1  # largest distance over the shorter norm; honest pairs with 25 % noise are at 0.35
SHARE = 0.2  # largest distance over the typical one; honest pairs with 25 times the typical tokens each are at 0.2
_SAME = 1 / 256  # of the typical distance: rounding error between equal vectors of almost zero norm


def clusters(span: Span) -> list[tuple[int, ...]]:
    """Indices of the vectors by group: each group ascending, groups ordered by their first member.

    Vectors are compared after clipping to the median norm, so that multiples of one gradient are near as well. Where
    most vectors coincide none is near another: honest miners then agree, and copies cannot be told apart.
    """
    clipped = NormClip()(span, 0, 0)
    distances, norms = clipped.distances(), clipped.norms()
    others = np.sort(distances, axis=1)[:, 1:]
    typical = float(np.median(np.median(others, axis=1))) if span.m > 1 else 0.0
    longest = np.maximum(NEAR * np.minimum(norms[:, None], norms[None, :]), _SAME * typical)
    near = (distances <= np.minimum(longest, SHARE * typical)) & (typical > 0.0)
    return _groups(near, distances)


def _groups(near: NDArray[np.bool_], distances: Float64) -> list[tuple[int, ...]]:
    """Complete linkage: from the nearest pair on, merge two groups if all their pairs are near."""
    group_of = {i: [i] for i in range(len(near))}
    first, second = np.nonzero(np.triu(near, 1))
    for pair in np.argsort(distances[first, second], kind="stable"):
        one, other = group_of[int(first[pair])], group_of[int(second[pair])]
        if one is not other and near[np.ix_(one, other)].all():
            one.extend(other)
            group_of.update(dict.fromkeys(other, one))
    return sorted({tuple(sorted(group)) for group in group_of.values()})


def one_vote(span: Span, groups: Sequence[Sequence[int]]) -> Span:
    """One vector per group: the mean of its members, each clipped to the shortest.

    Clipping keeps a longer copy from dominating its original.
    """
    norms = span.norms()
    mixing: Float64 = np.zeros((len(groups), span.m))
    for i, members in enumerate(groups):
        one = list(members)
        mixing[i, one] = shrink(norms[one], float(norms[one].min())) / len(one)
    return span.mixed(mixing)
