"""From admitted contributions to new weights, or to the reason why they stay. Blocking; nothing here waits for miners.

Who could hurt the model with a contribution that was admitted, and where it is stopped:

    up to f liars with any values                 the rule's stages (aggregation.pipeline)
    one gradient under many hotkeys               clusters: one vote
    a step that does harm all the same            the gate: measured on windows nobody could know
"""

import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgpt2.aggregation.combine import Terms, combine, terms
from fedgpt2.aggregation.pipeline import Aggregate
from fedgpt2.errors import Culprit, Reason, Refused
from fedgpt2.types import Hotkey
from fedgpt2.validator.admission import AdmissionResult, Status
from fedgpt2.validator.combined import Combined, SkipReason
from fedgpt2.validator.context import RunContext
from fedgpt2.validator.scoring import Scoring

__all__ = ["Combined", "Gate", "SkipReason", "Step", "aggregate", "apply_step", "try_step"]

_SHARES = (1.0, 0.5, 0.25, 0.125)  # of the learning rate, tried in turn: a step skipped comes back as it was


@dataclass(frozen=True)
class Gate:
    """What the loss gate measured, nats a token, and the share of the step it let pass."""

    before: float
    after: float | None  # at the last share tried; None where it was no number
    share: float


@dataclass(frozen=True)
class Step:
    """What the optimizer did: weights per admitted hotkey, or the reason why nothing was done."""

    combined: Combined
    applied: bool
    reason: SkipReason | None
    lr: float
    gate: Gate | None

    @property
    def norm(self) -> float | None:
        """Norm of the aggregate before clipping."""
        return self.combined.norm

    @property
    def weights(self) -> Mapping[Hotkey, float]:
        """Each contribution's weight in what was applied."""
        return self.combined.weights if self.applied else {}


def aggregate(ctx: RunContext, number: int, verdicts: Sequence[AdmissionResult]) -> Combined:
    """Form the aggregate of the admitted, by terms fixed by how many were asked, and what became of the others."""
    chosen = [v for v in verdicts if v.status is Status.ADMITTED]
    refused, silent = sum(map(_caught, verdicts)), sum(map(_silent, verdicts))
    unheard = len(verdicts) - len(chosen) - refused - silent
    by = terms(ctx.config.aggregation.rule, len(verdicts), refused, silent, unheard)
    if not by.met_by(len(chosen)):
        return Combined(by, SkipReason.TOO_FEW)
    try:
        norm, formed = ctx.training.aggregate(lambda out: _form(ctx, number, by, chosen, out))
    except Refused:
        return Combined(by, SkipReason.NON_FINITE)
    hotkeys = [v.result.issued.miner.hotkey for v in chosen]
    clusters = {hotkeys[i]: number for number, group in enumerate(formed.groups) for i in group}
    weights = dict(zip(hotkeys, formed.weights, strict=True))
    return Combined(by, None, norm, weights, clusters, formed.gram)


def _caught(verdict: AdmissionResult) -> bool:
    """Whether it was refused for what it sent."""
    failure = verdict.failure
    return verdict.status is Status.REFUSED and failure is not None and failure.culprit is Culprit.MINER


def _silent(verdict: AdmissionResult) -> bool:
    """Whether it was there and gave nothing, whomever it blames; not if the link failed, or others were enough."""
    failure = verdict.failure
    if verdict.status is not Status.FAILED or failure is None:
        return False
    return failure.culprit is not Culprit.NETWORK and failure.reason is not Reason.CANCELLED


def _form(ctx: RunContext, number: int, by: Terms, chosen: Sequence[AdmissionResult], out: Tensor) -> Aggregate:
    rows = [v.values for v in chosen if v.values is not None]
    norms = [v.norm for v in chosen if v.norm is not None]
    tokens = [v.result.issued.tokens for v in chosen]
    return combine(by, rows, norms, tokens, out, _seed(ctx.key, number, chosen))


def _seed(key: bytes, number: int, chosen: Sequence[AdmissionResult]) -> int:
    """For stages that draw: nobody knows it before the answers are in, everybody can check it after the run."""
    digests = sorted(v.result.received.contribution.blob.digest for v in chosen if v.result.received is not None)
    message = b"aggregate" + number.to_bytes(8, "big") + "".join(digests).encode("ascii")
    return int.from_bytes(hmac.digest(key, message, "sha256")[:8], "big")


def try_step(ctx: RunContext, number: int, combined: Combined, scoring: Scoring) -> Gate | None:
    """The largest share of the step that does not raise the loss on the gate's windows; None without a gate."""
    if combined.norm is None or not ctx.config.aggregation.gate:
        return None
    before, windows = scoring.train_loss, scoring.windows
    lr, after = ctx.training.rate(number, ctx.horizon), math.nan
    for share in _SHARES:
        after = ctx.training.trial(share * lr, windows)
        if after <= before + ctx.config.aggregation.tolerance:
            return Gate(before, after, share)
    return Gate(before, after if math.isfinite(after) else None, 0.0)


def apply_step(ctx: RunContext, number: int, combined: Combined, passed: Gate | None) -> Step:
    """One optimizer step, as much of it as was let pass."""
    share = passed.share if passed else 1.0
    if combined.norm is None or share == 0.0:
        return Step(combined, applied=False, reason=combined.reason or SkipReason.LOSS_GATE, lr=0.0, gate=passed)
    lr = share * ctx.training.rate(number, ctx.horizon)
    ctx.training.step(lr)
    return Step(combined, applied=True, reason=SkipReason.HALVED if share < 1.0 else None, lr=lr, gate=passed)
