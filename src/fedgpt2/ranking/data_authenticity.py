"""Whether a gradient was computed on the text that was assigned, from audits.

An audit computes a gradient h_i on windows of the miner's own assignment, drawn after all miners have answered:

    s_i = <h_i, x_i> / |x_i|
    o_i = (s_i - <g, x_i> / |x_i|) / |g|         effect on the assigned text beyond the effect on other text
    M = median of t o                            t tokens assigned; recent last audits of the miners compared
    r_i = clip(t_i o_i / max(M, FAINT t_i), LOWEST, HIGHEST)      relative to what the other miners' audits show
    O_i = exponential mean of r_i over the miner's audits (MEMORY)
    T_i = (k O_i + q m) / (k + q)                k audits, m = max(1/2, median of O), over all audited miners
    weight = clip(2 M / (u TELLING) - 1, 0, 1)   q = (u TELLING / M)², u the median of t
    authenticity_i = 1 - weight (1 - clip((T_i / m - LEAST) / (ENOUGH - LEAST), 0, 1))

An honest gradient contains the noise of its own text: o_i is about sigma² / (n |x_i| |g|), where sigma² is the variance
of one window's gradient and n the number of windows, hence the factor t. A gradient made without that text has o_i = 0
on average, however useful it is: a replay, a mean of other miners' gradients, a noisy copy, the gradient of another
assignment. Single values scatter, by the difference between that text and the scoring windows; TELLING is that scatter.
Both terms of o_i are unbiased: g depends on neither text.

o_i grows as g shrinks in training, so an audit is compared with audits of the same time. Recent are the last audits of
the RECENT fraction audited last, and of all audited as late as one of these: a quarter of the miners has no majority
there, however often it is audited, once most of the others have been.

The scatter is why one audit counts at most HIGHEST and at least LOWEST (nearer to 0, since one bad audit in a few must
not cost an honest miner its credit), and why few audits are shrunk towards the median, as by q more audits that show
the median. M below half of TELLING gives weight 0: the batches are too large for their noise to show; up to TELLING
the weight rises to 1. ENOUGH is above a half, so that one batch of two miners' texts does not pass in both names.

After the proof of computation of Lidin et al., "Incentivizing permissionless distributed learning of LLMs" (2025, arXiv
2505.21684), which compares assigned with random text in the same way.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from fedgpt2.protocol.round_record import Audit
from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome
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
    "AuditContext",
    "AuditHistory",
    "audit_signal",
    "authenticity",
    "update_audits",
]

MEMORY = 8  # audits after which an old one has faded to 1/e
RECENT = 2 / 3  # of the miners ever audited: the last ones set M
TELLING = 0.3  # of |g|
FAINT = 0.05  # of |g|: least divisor of r
LEAST, ENOUGH = 0.3, 0.7  # of the median of O: no credit up to the one, full credit from the other on
LOWEST, HIGHEST = -0.5, 1.5  # bounds of r
_MIDDLE = 0.5  # least m


@dataclass(frozen=True)
class AuditHistory:
    """What a miner's audits have shown."""

    mean: Average = field(default_factory=Average)  # O_i
    last_shown: float = 0.0  # t_i o_i
    last_round: int = 0  # 0 before the first audit


@dataclass(frozen=True)
class AuditContext:
    """A miner's audits, and the tokens it was assigned in the round."""

    history: AuditHistory
    tokens: int


def audit_signal(outcome: MinerOutcome, audit: Audit, gradient_norm: float) -> float | None:
    """o_i; None where it cannot be computed.

    It is 0 for a replay, which is made without any text: replays neither escape audits nor draw them off others.
    """
    if outcome.verdict is RoundOutcome.REPLAY:
        return 0.0
    if outcome.verdict not in (RoundOutcome.OWN, RoundOutcome.COPY) or outcome.credit is None:
        return None
    if not gradient_norm > 0.0:
        return None
    value = (audit.slope - outcome.credit.raw) / gradient_norm
    return value if math.isfinite(value) else None


def update_audits(
    contexts: Mapping[Hotkey, AuditContext], signals: Mapping[Hotkey, float], compared: Collection[Hotkey], number: int
) -> dict[Hotkey, AuditHistory]:
    """The histories of the miners audited in round `number`, given their signals o_i.

    `contexts` are the round's miners before it; M is taken over those `compared`.
    """
    now = {
        hotkey: replace(contexts[hotkey].history, last_shown=contexts[hotkey].tokens * signal, last_round=number)
        for hotkey, signal in signals.items()
    }
    middle = _middle([now.get(hotkey, contexts[hotkey].history) for hotkey in compared])
    return {
        hotkey: replace(
            history, mean=history.mean.add(_ratio(history.last_shown, contexts[hotkey].tokens, middle), MEMORY)
        )
        for hotkey, history in now.items()
    }


def authenticity(contexts: Mapping[Hotkey, AuditContext]) -> dict[Hotkey, float]:
    """Authenticity of each miner, 0 to 1; 1 for one that was never audited."""
    audited = [each.history for each in contexts.values() if each.history.last_round]
    shown = _middle(audited) / max(1.0, median([each.tokens for each in contexts.values()] or [1]))
    weight = min(1.0, max(0.0, 2.0 * shown / TELLING - 1.0))
    if not weight > 0.0:
        return dict.fromkeys(contexts, 1.0)
    shrinkage = (TELLING / shown) ** 2
    middle = max(_MIDDLE, median([history.mean.value(0.0) for history in audited]))
    return {
        hotkey: 1.0 - weight * (1.0 - _part(each.history, middle, shrinkage)) if each.history.last_round else 1.0
        for hotkey, each in contexts.items()
    }


def _middle(histories: Collection[AuditHistory]) -> float:
    """M; 0 before the first audit."""
    rounds = sorted((each.last_round for each in histories if each.last_round), reverse=True)
    if not rounds:
        return 0.0
    since = rounds[math.ceil(RECENT * len(rounds)) - 1]
    return median(each.last_shown for each in histories if each.last_round >= since)


def _ratio(shown: float, tokens: int, middle: float) -> float:
    """r_i of an audit that showed t_i o_i."""
    return min(HIGHEST, max(LOWEST, shown / max(middle, FAINT * max(1, tokens))))


def _part(history: AuditHistory, middle: float, shrinkage: float) -> float:
    audits = history.mean.weight * MEMORY
    shrunk = (audits * history.mean.value(0.0) + shrinkage * middle) / (audits + shrinkage)
    return min(1.0, max(0.0, (shrunk / middle - LEAST) / (ENOUGH - LEAST)))
