"""Near-identical contributions: one vote together.

Independent gradients over different text lie far apart (their noise is as long as they are); two that nearly coincide
are one computation sent twice. However many hotkeys send it, it counts once.
"""

import numpy as np

from fedgpt2.aggregation.span import Float64, Span

__all__ = ["clusters", "one_vote"]

NEAR = 0.1  # of the shorter one's norm; honest pairs at 25 % noise are already at 0.35


def clusters(span: Span, near: float = NEAR) -> list[list[int]]:
    """Groups of vectors linked by pairs closer than `near` times the shorter norm; each group in ascending order."""
    norms = span.norms()
    linked = span.distances() <= near * np.minimum(norms[:, None], norms[None, :])
    groups: list[list[int]] = []
    unseen = set(range(span.m))
    while unseen:
        group, edge = set(), {min(unseen)}
        while edge:
            group |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(linked[i])} - group
        unseen -= group
        groups.append(sorted(group))
    return groups


def one_vote(span: Span, groups: list[list[int]]) -> Span:
    """One vector a group: the mean of its members."""
    mixing: Float64 = np.zeros((len(groups), span.m))
    for i, members in enumerate(groups):
        mixing[i, members] = 1.0 / len(members)
    return span.mixed(mixing)
