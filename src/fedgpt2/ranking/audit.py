"""Whether a gradient was computed on the text it was asked for.

    s_i = (L(w) - L(w - e x_i / |x_i|)) / e      on windows of the miner's own assignment, drawn when all had answered
    o_i = (s_i - <g, x_i> / |x_i|) / |g|         what it does for that text beyond what it does for any
    M = median of t o                            t tokens assigned; the last audits of those compared, if recent
    r_i = clip(t_i o_i / max(M, FAINT t_i), LOWEST, HIGHEST)      as a part of what a miner shows at that time
    O_i = mean of r_i over its audits, the last MEMORY or so
    T_i = (k O_i + q m) / (k + q)                k audits, m = max(1/2, median of O), over all that are looked at
    asked = clip(2 M / (u TELLING) - 1, 0, 1)    q = (u TELLING / M)², u the median of t
    grounded_i = 1 - asked (1 - clip((T_i / m - LEAST) / (ENOUGH - LEAST), 0, 1))

An honest gradient holds the noise of its own text, and lowers the loss of that text by more than of any other: o_i is
about sigma² / (n |x_i| |g|), sigma² the variance of one window's gradient, n the windows; hence t. What was made
without that text holds none of it, however good it is: a replay, a mean of the others' gradients, a copy behind noise,
the gradient of somebody else's assignment. There o_i is 0 but for chance, which is how unlike that text and the scoring
windows are; TELLING is what is granted to it. Neither term of o_i is biased: g knows nothing of either text.

o_i grows several times over as g shrinks with training, so an audit is held to those of its time, and not a miner that
was last audited early to one that was audited since. Recent are the last audits of the RECENT part of them, and of all
that were audited as late as one of these: a quarter of the miners has no majority there, however often it is audited,
once most of the others have been.

Chance is why no single audit says more than HIGHEST or less than LOWEST. LOWEST is the nearer to 0, for one bad audit
in a few would take an honest miner's name; what that leaves to chance as loud as M is below LEAST, on the mean. And it
is why few audits are drawn towards the median, as by q more that say just that: one where honest noise hardly shows,
next to none where it is loud and a single audit tells. M below half of TELLING asks nobody for anything: batches are
then too large to hold noise that shows; from there to TELLING they are asked for more and more. ENOUGH is well above a
half, or one batch of two miners' texts could be sent in both names. A lucky audit of eight is hardly LEAST.

After the proof of computation of Lidin et al., "Incentivizing permissionless distributed learning of LLMs" (2025, arXiv
2505.21684), which compares assigned with random text in the same way; here it multiplies a score that all have.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from fedgpt2.ranking.evidence import Audit
from fedgpt2.ranking.marks import Mark, RoundOutcome
from fedgpt2.ranking.reliability import Average
from fedgpt2.types import Hotkey

__all__ = [
    "ENOUGH",
    "FAINT",
    "HIGHEST",
    "LEAST",
    "LOWEST",
    "MEMORY",
    "RECENT",
    "TELLING",
    "Known",
    "Told",
    "grounding",
    "groundings",
    "heard",
]

MEMORY = 8  # audits over which the past fades
RECENT = 2 / 3  # of those ever audited: the last ones, whose audits say what an audit shows now
TELLING = 0.3  # of |g|
FAINT = 0.05  # of |g|: less than this is nothing to be compared with
LEAST, ENOUGH = 0.3, 0.7  # of the median
LOWEST, HIGHEST = -0.5, 1.5  # of what the median shows: no single audit says less, or more
_MIDDLE = 0.5  # a median of less, as of many who use no text, is taken for this


@dataclass(frozen=True)
class Told:
    """What audits have told of a miner."""

    mean: Average = field(default_factory=Average)  # of r_i
    last_shown: float = 0.0  # t_i o_i
    last_round: int = 0  # 0 before the first


@dataclass(frozen=True)
class Known:
    """What is known of a miner when groundings are worked out."""

    told: Told
    tokens: int  # assigned in the round


def grounding(mark: Mark, audit: Audit, gradient_norm: float) -> float | None:
    """What one audit shows, o_i; None where it shows nothing: of what was refused, or was not measured."""
    if mark.verdict is RoundOutcome.REPLAY:
        return 0.0  # by what it is, and so that none escapes audits by replays, nor draws them off others
    if mark.verdict not in (RoundOutcome.OWN, RoundOutcome.COPY) or mark.credit is None:
        return None
    if not gradient_norm > 0.0 or not audit.length > 0.0:
        return None
    value = ((audit.before - audit.after) / audit.length - mark.credit.raw) / gradient_norm
    return value if math.isfinite(value) else None


def heard(
    known: Mapping[Hotkey, Known], found: Mapping[Hotkey, float], compared: Collection[Hotkey], number: int
) -> dict[Hotkey, Told]:
    """What audits have told of those audited in round `number`, `found` o_i of each.

    `known` are the round's miners before that; of these `compared` say what an audit shows.
    """
    now = {
        hotkey: replace(known[hotkey].told, last_shown=known[hotkey].tokens * shown, last_round=number)
        for hotkey, shown in found.items()
    }
    middle = _middle([now.get(hotkey, known[hotkey].told) for hotkey in compared])
    return {
        hotkey: replace(told, mean=told.mean.add(_ratio(told.last_shown, known[hotkey].tokens, middle), MEMORY))
        for hotkey, told in now.items()
    }


def groundings(known: Mapping[Hotkey, Known]) -> dict[Hotkey, float]:
    """What part of its credit counts for each miner, 0 to 1, by the audits of all of `known`.

    Who was never audited is trusted until it is.
    """
    audited = [each.told for each in known.values() if each.told.last_round]
    shown = _middle(audited) / max(1.0, median([each.tokens for each in known.values()] or [1]))
    asked = min(1.0, max(0.0, 2.0 * shown / TELLING - 1.0))
    if not asked > 0.0:
        return dict.fromkeys(known, 1.0)
    doubt = (TELLING / shown) ** 2
    middle = max(_MIDDLE, median([told.mean.value(0.0) for told in audited]))
    return {
        hotkey: 1.0 - asked * (1.0 - _part(each.told, middle, doubt)) if each.told.last_round else 1.0
        for hotkey, each in known.items()
    }


def _middle(told: Collection[Told]) -> float:
    """M; 0 before the first audit."""
    rounds = sorted((each.last_round for each in told if each.last_round), reverse=True)
    if not rounds:
        return 0.0
    since = rounds[math.ceil(RECENT * len(rounds)) - 1]
    return median(each.last_shown for each in told if each.last_round >= since)


def _ratio(shown: float, tokens: int, middle: float) -> float:
    """r_i of an audit that showed this."""
    return min(HIGHEST, max(LOWEST, shown / max(middle, FAINT * max(1, tokens))))


def _part(told: Told, middle: float, doubt: float) -> float:
    audits = told.mean.weight * MEMORY
    drawn = (audits * told.mean.value(0.0) + doubt * middle) / (audits + doubt)
    return min(1.0, max(0.0, (drawn / middle - LEAST) / (ENOUGH - LEAST)))
