"""What every contribution adds, measured on windows nobody could know, and what that makes of its miner's rating.

Blocking; runs off the event loop. Everything a rating rests on is in the round's evidence, hence in the ledger.
"""

import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedgpt2.config import Ranking
from fedgpt2.data.assignment import Assignment
from fedgpt2.data.pools import Pick
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import CorpusError, Refused, UsageError
from fedgpt2.protocol.messages import Order
from fedgpt2.ranking.credit import check_rule
from fedgpt2.ranking.evidence import Audit, Evidence, MinerEvidence, Products, Trial, rule_row
from fedgpt2.ranking.measure import measure
from fedgpt2.ranking.sample import choose
from fedgpt2.ranking.table import REVISION, Entry, Table, advance
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.admission import AdmissionResult, Status
from fedgpt2.validator.context import Run
from fedgpt2.validator.step import Combined, Step
from fedgpt2.validator.training import Training

__all__ = ["Judged", "Measured", "Scoring", "check_ranking", "measure_contributions", "rank", "score"]

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


@dataclass(frozen=True)
class Measured:
    """What was measured of the admitted before the step."""

    products: Products | None = None
    trials: tuple[Trial, ...] = ()
    audits: tuple[Audit, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What the round was worth: its evidence, the table after it, and every miner's entry."""

    evidence: Evidence
    table: Table
    entries: Mapping[Hotkey, Entry]


def check_ranking(rule: Ranking) -> None:
    """Raise UsageError for settings that a validator cannot rank by."""
    check_rule(rule)
    if rule.score == "losses" and 0 in (rule.tokens, rule.sample, rule.trial):
        raise UsageError("--ranking.score losses compares trials: --ranking.tokens, .sample and .trial must not be 0")
    for kind in rule.basis.split("+"):
        if kind not in _LIVE:
            raise UsageError(f"--ranking.basis {rule.basis}: a validator keeps aggregate and moment only, joined by +")


def score(run: Run, number: int, digests: Sequence[Digest]) -> Scoring:
    """Draw the round's windows; nobody could know them before the admitted set, `digests`, was fixed."""
    gate, rule = run.config.run.score_windows, run.config.ranking
    ranked, tried = (-(-tokens // run.corpus.manifest.seq_len) for tokens in (rule.tokens, rule.trial))
    tried = min(tried, ranked) if rule.sample else 0
    picks = run.corpus.score_picks(run.key, number, digests, max(gate, ranked))
    windows = run.corpus.score_tokens(picks)
    loss, before = _losses(run.training, windows, gate, tried)
    return Scoring(picks[:ranked], windows[:ranked], windows[:gate], windows[:tried], loss, before)


def _losses(training: Training, windows: Tokens, gate: int, tried: int) -> tuple[float, float]:
    """Of the first `gate` and of the first `tried` windows: those of both pass once, the rest of either after them."""
    shared = min(gate, tried)
    parts = [part for part in (windows[:shared], windows[shared : max(gate, tried)]) if len(part)]
    losses = [training.loss(part) for part in parts]
    whole = sum(len(part) * loss for part, loss in zip(parts, losses, strict=True)) / sum(map(len, parts))
    return (whole, losses[0]) if gate > tried else (losses[0], whole)


def measure_contributions(
    run: Run, number: int, verdicts: Sequence[AdmissionResult], combined: Combined, scoring: Scoring
) -> Measured:
    """Inner products of the admitted with the scoring gradient and with what is free; trials and audits of a sample."""
    if combined.norm is None or not len(scoring.windows):
        return Measured()
    chosen = {v.result.issued.miner.hotkey: v for v in verdicts if v.status is Status.ADMITTED}
    rows = [v.values for v in chosen.values() if v.values is not None]
    gradient = run.training.scoring_gradient(scoring.windows)
    products = measure(list(chosen), rows, run.training.free(), gradient, combined.gram)
    sample = _sample(run, number, chosen)
    return Measured(products, _trials(run, number, sample, scoring), _audits(run, number, sample))


@dataclass(frozen=True)
class _Sampled:
    """A contribution to be looked at more closely."""

    values: Tensor  # [d] fp32
    norm: float
    order: Order


def _sample(run: Run, number: int, chosen: Mapping[Hotkey, AdmissionResult]) -> dict[Hotkey, _Sampled]:
    """Of the admitted some of whom least is known; without any whose contribution has no direction."""
    able = {
        hotkey: _Sampled(verdict.values, verdict.norm, verdict.result.issued.order)
        for hotkey, verdict in chosen.items()
        if verdict.values is not None and verdict.norm
    }
    drawn = choose(run.ranking.table, able, run.config.ranking.sample, _drawn(run, number, b"sample"))
    return {hotkey: able[hotkey] for hotkey in drawn}


def _drawn(run: Run, number: int, what: bytes) -> bytes:
    """A seed that nobody knows before the key is told."""
    return hmac.digest(run.key, what + number.to_bytes(8, "big"), "sha256")


def _trials(run: Run, number: int, sample: Mapping[Hotkey, _Sampled], scoring: Scoring) -> tuple[Trial, ...]:
    """A step along one contribution alone, as long as the round's."""
    if not len(scoring.trial_windows):
        return ()
    lr = run.training.rate(number, run.horizon)
    after = {hotkey: run.training.trial_of(s.values, s.norm, lr, scoring.trial_windows) for hotkey, s in sample.items()}
    return tuple(Trial(hotkey=hotkey, before=scoring.before, after=_finite(loss)) for hotkey, loss in after.items())


def _audits(run: Run, number: int, sample: Mapping[Hotkey, _Sampled]) -> tuple[Audit, ...]:
    """A short step along each contribution, tried on some of the text it should have been computed on."""
    if not run.config.ranking.audit:
        return ()
    rng = np.random.default_rng(int.from_bytes(_drawn(run, number, b"audit"), "big"))
    audits = (_audit(run, hotkey, sampled, rng) for hotkey, sampled in sample.items())
    return tuple(audit for audit in audits if audit is not None)


def _audit(run: Run, hotkey: Hotkey, sampled: _Sampled, rng: np.random.Generator) -> Audit | None:
    """None where the text cannot be had again: no reason to end a round."""
    assigned = sampled.order.assignment
    try:
        windows = run.corpus.windows(
            Assignment(Digest(assigned.manifest), assigned.slot, assigned.pages, assigned.windows)
        )
    except (CorpusError, Refused):
        return None
    tokens, whole = run.config.ranking.audit, run.corpus.manifest.seq_len
    places = sorted(rng.permutation(len(windows))[: -(-tokens // whole)].tolist())
    start = int(rng.integers(max(0, whole - tokens) + 1))  # where nobody knows, or only that part would be computed on
    part = windows[places][:, start : start + tokens + 1]
    before, after, length = run.training.nudge(sampled.values, sampled.norm, part)
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


def rank(
    run: Run, number: int, verdicts: Sequence[AdmissionResult], step: Step, scoring: Scoring, measured: Measured
) -> Judged:
    """Rate by the round's evidence. Changes nothing."""
    evidence = Evidence(
        round=number,
        revision=REVISION,
        applied=step.applied,
        reason=step.reason,
        rule=rule_row(run.config.ranking),
        picks=tuple((pick.page, pick.window) for pick in scoring.picks),
        miners=tuple(_miner(verdict, step.combined) for verdict in verdicts),
        products=measured.products,
        trials=measured.trials,
        audits=measured.audits,
    )
    table, entries = advance(run.ranking.table, evidence)
    return Judged(evidence, table, entries)


def _miner(verdict: AdmissionResult, combined: Combined) -> MinerEvidence:
    result, failure = verdict.result, verdict.failure
    hotkey, traffic = result.issued.miner.hotkey, result.traffic
    return MinerEvidence(
        hotkey=hotkey,
        status=verdict.status.value,
        reason=failure.reason.value if failure else None,
        fault=failure.culprit.value if failure else None,
        digest=result.received.contribution.blob.digest if result.received else None,
        norm=verdict.norm,
        tokens=result.issued.tokens,
        committed=traffic.described or None,
        seconds=max(traffic.sent, traffic.described, traffic.received),
        cluster=combined.clusters.get(hotkey),
        weight=combined.weights.get(hotkey, 0.0),
    )
