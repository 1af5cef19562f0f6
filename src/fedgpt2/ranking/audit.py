"""Whether a gradient was computed on the text it was asked for.

    s_i = (L(w) - L(w - e x_i / |x_i|)) / e      on windows of the miner's own assignment, drawn when all had answered
    o_i = (s_i - <g, x_i> / |x_i|) / |g|         what it does for that text beyond what it does for any
    O_i = mean of min(o_i, max(BOUND M / t_i, UNTOLD)) over its audits, the last MEMORY or so; 0 for a replay
    T_i = (k t_i O_i + q M) / (k + q)            k audits, t_i tokens assigned, M = median of t O, over those compared
    told = clip(2 median of O / TELLING - 1, 0, 1)              q = (TELLING / median of O)²
    grounded_i = 1 - told (1 - clip((T_i / M - LEAST) / (ENOUGH - LEAST), 0, 1))

An honest gradient holds the noise of its own text, and lowers the loss of that text by more than of any other: o_i is
about sigma² / (n |x_i| |g|), sigma² the variance of one window's gradient, n the windows; hence t. What was made
without that text holds none of it, however good it is: a replay, a mean of the others' gradients, a copy behind noise,
the gradient of somebody else's assignment. There o_i is 0 but for chance, which is how unlike that text and the scoring
windows are; TELLING is what is granted to it. Neither term is biased: g knows nothing of either text.

Chance is why few audits are drawn towards the median, as by q more that say just that: one where honest noise hardly
shows, next to none where it is loud and a single audit tells. A median below half of TELLING asks nobody for anything:
batches are then too large to hold noise that shows; from there to TELLING they are asked for more and more. ENOUGH is
well above a half, or one batch of two miners' texts could be sent in both names. LEAST is what chance may leave of
nothing: a lucky audit of eight, at most BOUND M, is hardly more.

After the proof of computation of Lidin et al., "Incentivizing permissionless distributed learning of LLMs" (2025, arXiv
2505.21684), which compares assigned with random text in the same way; here it multiplies a score that all have.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from fedgpt2.ranking.evidence import Audit
from fedgpt2.ranking.marks import Mark, Verdict
from fedgpt2.ranking.reliability import Average
from fedgpt2.types import Hotkey

__all__ = ["BOUND", "ENOUGH", "LEAST", "MEMORY", "TELLING", "UNTOLD", "Known", "bounds", "grounding", "groundings"]

MEMORY = 8  # audits over which the past fades
TELLING = 0.3  # of |g|
LEAST, ENOUGH = 0.25, 0.75  # of the median
BOUND = 1.5  # of the median: no single audit says more than this,
UNTOLD = 0.9  # of |g|, or this: else a low median would hold down what raises it
_LOWEST, _HIGHEST = -1.0, 4.0  # of |g|: nor more, nor less, than these


@dataclass(frozen=True)
class Known:
    """What is known of a miner when groundings are worked out."""

    audits: Average  # of o_i
    tokens: int  # assigned in the round


def grounding(mark: Mark, audit: Audit, gradient_norm: float) -> float | None:
    """What one audit says, o_i; None where it says nothing: of what was refused, or was not measured."""
    if mark.verdict is Verdict.REPLAY:
        return 0.0  # by what it is, and so that none escapes audits by replays, nor draws them off others
    if mark.verdict not in (Verdict.OWN, Verdict.COPY) or mark.credit is None:
        return None
    if not gradient_norm > 0.0 or not audit.length > 0.0:
        return None
    value = ((audit.before - audit.after) / audit.length - mark.credit.raw) / gradient_norm
    return min(_HIGHEST, max(_LOWEST, value)) if math.isfinite(value) else None


def bounds(known: Mapping[Hotkey, Known]) -> dict[Hotkey, float]:
    """The most that one more audit of each may say, by the audits so far of all of `known`."""
    middle = _middle(known)
    return {
        hotkey: max(UNTOLD, BOUND * middle / each.tokens) if middle > 0.0 and each.tokens else _HIGHEST
        for hotkey, each in known.items()
    }


def _middle(known: Mapping[Hotkey, Known]) -> float:
    """M; 0 before the first audit."""
    told = [each.tokens * each.audits.value(0.0) for each in known.values() if each.audits.weight]
    return median(told) if told else 0.0


def groundings(known: Mapping[Hotkey, Known]) -> dict[Hotkey, float]:
    """What part of its credit counts for each miner, 0 to 1, by the audits of all of `known`.

    Who was never audited is trusted until it is.
    """
    shown, middle = _shown(known), _middle(known)
    told = min(1.0, max(0.0, 2.0 * shown / TELLING - 1.0))
    if not (told > 0.0 and middle > 0.0):
        return dict.fromkeys(known, 1.0)
    doubt = (TELLING / shown) ** 2
    return {
        hotkey: 1.0 - told * (1.0 - _part(each, middle, doubt)) if each.audits.weight else 1.0
        for hotkey, each in known.items()
    }


def _shown(known: Mapping[Hotkey, Known]) -> float:
    """Median of O; 0 before the first audit."""
    means = [each.audits.value(0.0) for each in known.values() if each.audits.weight]
    return median(means) if means else 0.0


def _part(known: Known, middle: float, doubt: float) -> float:
    audits = known.audits.weight * MEMORY
    drawn = (audits * known.tokens * known.audits.value(0.0) + doubt * middle) / (audits + doubt)
    return min(1.0, max(0.0, (drawn / middle - LEAST) / (ENOUGH - LEAST)))
