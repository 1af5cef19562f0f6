"""What the validator measures of the admitted contributions, on text that no miner knows in advance.

Blocking; runs off the event loop. The ranking rests on nothing but what is returned here and the miners' records.
"""

import hmac
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from fedgpt2.data.assignment import Assignment
from fedgpt2.data.pools import Pick
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import CorpusError, Refused
from fedgpt2.protocol.messages import Order
from fedgpt2.protocol.round_record import Audit, Evidence
from fedgpt2.ranking.audit_sample import draw_sample
from fedgpt2.ranking.budget import Budget, budget, window_shape
from fedgpt2.ranking.inner_products import inner, measure_products
from fedgpt2.ranking.table import REVISION
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.admission import AdmissionResult
from fedgpt2.validator.combined import Combined
from fedgpt2.validator.context import RunContext

__all__ = ["Scoring", "draw_scoring", "measure"]


@dataclass(frozen=True)
class Scoring:
    """Windows of the score pool for the loss gate, and the loss on them before the step, nats a token."""

    picks: tuple[Pick, ...]
    windows: Tokens  # uint16 [n, seq_len + 1]
    train_loss: float


def draw_scoring(ctx: RunContext, number: int, digests: Sequence[Digest]) -> Scoring:
    """Draw the windows of round `number`.

    They depend on the evaluation key and on `digests`, the admitted contributions: unknown until that set is fixed.
    """
    picks = ctx.corpus.score_picks(ctx.key, number, digests, ctx.config.run.score_windows)
    windows = ctx.corpus.score_tokens(picks)
    return Scoring(picks, windows, ctx.training.loss(windows))


@dataclass(frozen=True)
class _Admitted:
    """An admitted contribution."""

    hotkey: Hotkey
    digest: Digest
    values: Tensor  # [d] fp32
    norm: float
    order: Order
    tokens: int


def measure(
    ctx: RunContext, number: int, results: Sequence[AdmissionResult], combined: Combined, scoring: Scoring
) -> Evidence:
    """Measure the inner products of all admitted contributions, and audit some, within the budget of the round.

    Nothing is measured where there is no aggregate.
    """
    admitted, rule = _admitted(results), ctx.config.ranking
    plan = budget(rule, [each.tokens for each in admitted])
    if combined.norm is None or not plan.gradient:
        return Evidence(revision=REVISION, rule=asdict(rule), picks=_places(scoring.picks))
    count, length = window_shape(plan.gradient, ctx.corpus.manifest.seq_len)
    picks = ctx.corpus.score_picks(ctx.key, number, [each.digest for each in admitted], count)
    gradient = ctx.training.scoring_gradient(ctx.corpus.score_tokens(picks)[:, : length + 1])
    hotkeys, values = [each.hotkey for each in admitted], [each.values for each in admitted]
    return Evidence(
        revision=REVISION,
        rule=asdict(rule),
        picks=_places(max(picks, scoring.picks, key=len)),  # one draw, of different length
        products=measure_products(hotkeys, values, ctx.training.baseline(), gradient),
        audits=_audits(ctx, number, admitted, plan),
    )


def _places(picks: Sequence[Pick]) -> tuple[tuple[int, int], ...]:
    return tuple((pick.page, pick.window) for pick in picks)


def _admitted(results: Sequence[AdmissionResult]) -> list[_Admitted]:
    found = []
    for result in results:
        received, issued = result.result.received, result.result.issued
        if received is not None and result.values is not None and result.norm is not None:
            digest = Digest(received.contribution.blob.digest)
            found.append(
                _Admitted(issued.miner.hotkey, digest, result.values, result.norm, issued.order, issued.tokens)
            )
    return found


def _audits(ctx: RunContext, number: int, admitted: Sequence[_Admitted], plan: Budget) -> tuple[Audit, ...]:
    """Audits of the drawn miners; a contribution of norm 0 has no direction to step along."""
    able = {each.hotkey: each for each in admitted if each.norm}
    drawn = draw_sample(ctx.ranking.table, able, plan.audits, _seed(ctx, number, b"sample"))
    rng = np.random.default_rng(int.from_bytes(_seed(ctx, number, b"audit"), "big"))
    audits = (_audit(ctx, able[hotkey], plan.audit, rng) for hotkey in drawn)
    return tuple(audit for audit in audits if audit is not None)


def _seed(ctx: RunContext, number: int, purpose: bytes) -> bytes:
    """A seed from the evaluation key: secret until the run is over."""
    return hmac.digest(ctx.key, purpose + number.to_bytes(8, "big"), "sha256")


def _audit(ctx: RunContext, admitted: _Admitted, tokens: int, rng: np.random.Generator) -> Audit | None:
    """The effect of a contribution on `tokens` tokens of its assigned text; None where that cannot be read."""
    assigned = admitted.order.assignment
    try:
        windows = ctx.corpus.windows(
            Assignment(Digest(assigned.manifest), assigned.slot, assigned.pages, assigned.windows)
        )
    except (CorpusError, Refused):
        return None
    whole = ctx.corpus.manifest.seq_len
    count, length = window_shape(tokens, whole)
    places = sorted(rng.permutation(len(windows))[:count].tolist())
    start = int(rng.integers(whole - length + 1))  # random, so that no fixed part of a window is sure to be used
    gradient = ctx.training.scoring_gradient(windows[places][:, start : start + length + 1])
    slope = float(inner([gradient, admitted.values], 1)[0, 1]) / admitted.norm
    if not math.isfinite(slope):
        return None
    return Audit(hotkey=admitted.hotkey, windows=tuple(places), start=start, slope=slope)
