"""Near-identical contributions: one vote together.

Independent gradients over different text lie far apart, for their noise differs; two that nearly coincide are one
computation sent twice. However many hotkeys send it, it counts once.

"Near" is measured against the contributions' norm and against how far apart they typically lie. Without the latter,
miners whose batches are so large that noise hardly shows would all be taken for one, and f liars would outvote them.
And every pair of a group must be near: by chains of near pairs, liars could tie honest miners together.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgpt2.aggregation.span import Float64, Span
from fedgpt2.aggregation.stages import NormClip, shrink

__all__ = ["clusters", "one_vote"]

NEAR = 0.1  # of the shorter one's norm; honest pairs at 25 % noise are already at 0.35
SHARE = 0.2  # of the typical distance; honest pairs reach that when both hold 25 times the typical tokens
_SAME = 1 / 256  # of the typical distance: what rounding leaves between equals, for vectors of almost no length


def clusters(span: Span) -> list[tuple[int, ...]]:
    """Every vector in one group; each group in ascending order, the groups by their first.

    Vectors are compared after clipping to the median norm, so that multiples of one gradient are near, too. No two
    are near when most coincide: honest miners then agree, and nothing tells a copy.
    """
    clipped = NormClip()(span, 0, 0)
    distances, norms = clipped.distances(), clipped.norms()
    others = np.sort(distances, axis=1)[:, 1:]
    typical = float(np.median(np.median(others, axis=1))) if span.m > 1 else 0.0
    longest = np.maximum(NEAR * np.minimum(norms[:, None], norms[None, :]), _SAME * typical)
    near = (distances <= np.minimum(longest, SHARE * typical)) & (typical > 0.0)
    return _groups(near, distances)


def _groups(near: NDArray[np.bool_], distances: Float64) -> list[tuple[int, ...]]:
    """Complete linkage: nearest pairs first, two groups become one if all their pairs are near."""
    group_of = {i: [i] for i in range(len(near))}
    first, second = np.nonzero(np.triu(near, 1))
    for pair in np.argsort(distances[first, second], kind="stable"):
        one, other = group_of[int(first[pair])], group_of[int(second[pair])]
        if one is not other and near[np.ix_(one, other)].all():
            one.extend(other)
            group_of.update(dict.fromkeys(other, one))
    return sorted({tuple(sorted(group)) for group in group_of.values()})


def one_vote(span: Span, groups: Sequence[Sequence[int]]) -> Span:
    """One vector a group: the mean of its members, each clipped to the shortest.

    So a copy cannot carry its original along by its length.
    """
    norms = span.norms()
    mixing: Float64 = np.zeros((len(groups), span.m))
    for i, members in enumerate(groups):
        one = list(members)
        mixing[i, one] = shrink(norms[one], float(norms[one].min())) / len(one)
    return span.mixed(mixing)
