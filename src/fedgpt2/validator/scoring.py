"""What every contribution adds, measured on windows nobody could know, and what that makes of its miner's rating.

Blocking; runs off the event loop. Everything a rating rests on is in the round's evidence, hence in the ledger.
"""

import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import msgspec
import numpy as np
from torch import Tensor

from fedgpt2.data.assignment import Assignment
from fedgpt2.data.pools import Pick
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import CorpusError, Refused
from fedgpt2.protocol.messages import Order
from fedgpt2.protocol.round_record import Audit, Evidence
from fedgpt2.ranking.from_record import products_record
from fedgpt2.ranking.measure import measure as inner_products
from fedgpt2.ranking.sample import choose
from fedgpt2.ranking.table import REVISION
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.admission import AdmissionResult, Status
from fedgpt2.validator.combined import Combined
from fedgpt2.validator.context import RunContext
from fedgpt2.validator.training import Training

__all__ = ["Scoring", "draw_scoring", "measure"]

_WORST = 1e6  # nats a token; a loss that is no number is this one
_LIVE = {"aggregate", "moment", "none"}  # what is free that a validator keeps; the others are for studies


@dataclass(frozen=True)
class Scoring:
    """The round's windows of the score pool, and the loss of the weights on them, nats a token."""

    picks: tuple[Pick, ...]
    windows: Tokens  # uint16 [n, seq_len + 1], that contributions are measured on; their places are `picks`
    gate_windows: Tokens  # that the loss gate looks at
    trial_windows: Tokens  # that the steps of a sample are tried on: the first of `windows`
    loss: float  # on the gate's: train_loss
    before: float  # on the trials'


def draw_scoring(ctx: RunContext, number: int, digests: Sequence[Digest]) -> Scoring:
    """Draw the round's windows; nobody could know them before the admitted set, `digests`, was fixed."""
    gate, rule = ctx.config.run.score_windows, ctx.config.ranking
    ranked, tried = (-(-tokens // ctx.corpus.manifest.seq_len) for tokens in (rule.tokens, rule.trial))
    tried = min(tried, ranked) if rule.sample else 0
    picks = ctx.corpus.score_picks(ctx.key, number, digests, max(gate, ranked))
    windows = ctx.corpus.score_tokens(picks)
    loss, before = _losses(ctx.training, windows, gate, tried)
    return Scoring(picks[:ranked], windows[:ranked], windows[:gate], windows[:tried], loss, before)


def _losses(training: Training, windows: Tokens, gate: int, tried: int) -> tuple[float, float]:
    """Of the first `gate` and of the first `tried` windows: those of both pass once, the rest of either after them."""
    shared = min(gate, tried)
    parts = [part for part in (windows[:shared], windows[shared : max(gate, tried)]) if len(part)]
    losses = [training.loss(part) for part in parts]
    whole = sum(len(part) * loss for part, loss in zip(parts, losses, strict=True)) / sum(map(len, parts))
    return (whole, losses[0]) if gate > tried else (losses[0], whole)


def measure(
    ctx: RunContext, number: int, results: Sequence[AdmissionResult], combined: Combined, scoring: Scoring
) -> Evidence:
    """Inner products of the admitted with the scoring gradient and with what is free; trials and audits of a sample."""
    nothing = Evidence(
        revision=REVISION,
        rule=asdict(ctx.config.ranking),
        picks=tuple((pick.page, pick.window) for pick in scoring.picks),
    )
    if combined.norm is None or not len(scoring.windows):
        return nothing
    chosen = {v.outcome.ticket.seat.hotkey: v for v in results if v.status is Status.ADMITTED}
    rows = [v.values for v in chosen.values() if v.values is not None]
    gradient = ctx.training.scoring_gradient(scoring.windows)
    products = inner_products(list(chosen), rows, ctx.training.free(), gradient, combined.gram)
    audits = _audits(ctx, number, _sample(ctx, number, chosen))
    return msgspec.structs.replace(nothing, products=products_record(products), audits=audits)


@dataclass(frozen=True)
class _Sampled:
    """A contribution to be looked at more closely."""

    values: Tensor  # [d] fp32
    norm: float
    order: Order


def _sample(ctx: RunContext, number: int, chosen: Mapping[Hotkey, AdmissionResult]) -> dict[Hotkey, _Sampled]:
    """Of the admitted some of whom least is known; without any whose contribution has no direction."""
    able = {
        hotkey: _Sampled(verdict.values, verdict.norm, verdict.outcome.ticket.order)
        for hotkey, verdict in chosen.items()
        if verdict.values is not None and verdict.norm
    }
    drawn = choose(ctx.ranking.table, able, ctx.config.ranking.sample, _drawn(ctx, number, b"sample"))
    return {hotkey: able[hotkey] for hotkey in drawn}


def _drawn(ctx: RunContext, number: int, what: bytes) -> bytes:
    """A seed that nobody knows before the key is told."""
    return hmac.digest(ctx.key, what + number.to_bytes(8, "big"), "sha256")


def _audits(ctx: RunContext, number: int, sample: Mapping[Hotkey, _Sampled]) -> tuple[Audit, ...]:
    """A short step along each contribution, tried on some of the text it should have been computed on."""
    if not ctx.config.ranking.audit:
        return ()
    rng = np.random.default_rng(int.from_bytes(_drawn(ctx, number, b"audit"), "big"))
    audits = (_audit(ctx, hotkey, sampled, rng) for hotkey, sampled in sample.items())
    return tuple(audit for audit in audits if audit is not None)


def _audit(ctx: RunContext, hotkey: Hotkey, sampled: _Sampled, rng: np.random.Generator) -> Audit | None:
    """None where the text cannot be had again: no reason to end a round."""
    assigned = sampled.order.assignment
    try:
        windows = ctx.corpus.windows(
            Assignment(Digest(assigned.manifest), assigned.slot, assigned.pages, assigned.windows)
        )
    except (CorpusError, Refused):
        return None
    tokens, whole = ctx.config.ranking.audit, ctx.corpus.manifest.seq_len
    places = sorted(rng.permutation(len(windows))[: -(-tokens // whole)].tolist())
    start = int(rng.integers(max(0, whole - tokens) + 1))  # where nobody knows, or only that part would be computed on
    part = windows[places][:, start : start + tokens + 1]
    before, after, length = ctx.training.nudge(sampled.values, sampled.norm, part)
    return Audit(
        hotkey=hotkey,
        windows=tuple(places),
        start=start,
        before=_finite(before),
        after=_finite(after),
        length=length,
    )


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else _WORST
