"""Whether a gradient was computed on the text it was asked for.

    s_i(y) = (L(w) - L(w - e y / |y|)) / e      on windows of the miner's own assignment, drawn when all had answered
    o_i = (s_i(x_i) - c_i s_i(g)) / |g|         what it does for that text beyond what it does for any,
                                                c_i = <g, x_i> / |x_i| / |g| its cosine with g
    O_i = mean of o_i over its audits, later ones more                          (`ranking.memory`)
    grounded_i = clip(2 O_i / median of O, 0, 1)        the median over those compared in the round

An honest gradient holds the noise of its own text, and lowers the loss of that text by more than of any other: o_i is
about sigma² / (n |x_i| |g|), sigma² the variance of one window's gradient, n the windows. What was made without that
text holds none of it, however good it is: a replay, a mean of the others' gradients, a copy behind noise, the gradient
of somebody else's assignment. There o_i is 0, but for chance: how steep the loss of that text is for everybody, s_i(g)
tells. Half of the median is enough, for few audits are noisy and batches differ; a median below TELLING says that
batches are too large to hold noise that shows, and then nobody is asked for any.

After the proof of computation of Lidin et al., "Incentivizing permissionless distributed learning of LLMs" (2025, arXiv
2505.21684), which compares assigned with random text in the same way; here it multiplies a score that all have.
"""

import math
from collections.abc import Mapping

from fedgpt2.ranking.evidence import Audit
from fedgpt2.ranking.marks import Mark, Verdict
from fedgpt2.types import Hotkey

__all__ = ["TELLING", "grounding", "groundings"]

TELLING = 0.3  # of |g|: what a single audit of a gradient without its text may show by chance
_ENOUGH = 2.0  # one over the part of the median that counts in full
_LEAST, _MOST = -1.0, 4.0  # no single audit says more than this


def grounding(mark: Mark, audit: Audit, gradient_norm: float) -> float | None:
    """What one audit says, o_i; None where it says nothing: of a replay, or of what was not measured."""
    if mark.verdict not in (Verdict.OWN, Verdict.COPY) or mark.credit is None:
        return None
    if not gradient_norm > 0.0 or not audit.length > 0.0:
        return None
    slope, common = (audit.before - audit.after) / audit.length, (audit.before - audit.control) / audit.length
    value = (slope - mark.credit.raw / gradient_norm * common) / gradient_norm
    return min(_MOST, max(_LEAST, value)) if math.isfinite(value) else None


def groundings(known: Mapping[Hotkey, float | None]) -> dict[Hotkey, float]:
    """What part of its credit counts for each miner compared, 0 to 1; `known` are the means, None of one never audited.

    Who was never audited is trusted until it is.
    """
    ordered = sorted(value for value in known.values() if value is not None)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2.0 if ordered else 0.0
    if middle < TELLING:
        return dict.fromkeys(known, 1.0)
    return {
        hotkey: 1.0 if value is None else min(1.0, max(0.0, _ENOUGH * value / middle))
        for hotkey, value in known.items()
    }
