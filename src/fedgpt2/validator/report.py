"""What is said of a round: its line of rounds.jsonl and the receipts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import msgspec

from fedgpt2.link.base import Traffic
from fedgpt2.protocol.messages import Ranked, Receipt
from fedgpt2.ranking.evidence import as_row
from fedgpt2.ranking.record import entry_row, miner_row
from fedgpt2.ranking.table import ranks
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.admission import AdmissionResult, Status
from fedgpt2.validator.rank import Judged
from fedgpt2.validator.step import Step

__all__ = ["Clock", "lapses", "receipts", "round_row"]


_PHASES = (
    "snapshot",
    "send",
    "wait",
    "receive",
    "admit",
    "rank",
    "aggregate",
    "gate",
    "step",
    "evaluate",
    "checkpoint",
)


class Clock:
    """Seconds of the phases of a round, by the validator's monotonic clock; a phase left out took none."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._phases: dict[str, float] = dict.fromkeys(_PHASES, 0.0)

    def mark(self, phase: str) -> None:
        """End a phase: all time since the last mark is its."""
        now = time.monotonic()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._last = now

    def gathered(self, traffic: Sequence[Traffic]) -> None:
        """End sending, waiting and receiving, which overlap between miners.

        send ends when the last miner holds the state, wait when the last answer is known; receive is the rest.
        """
        now = time.monotonic()
        total = now - self._last
        sent = min(total, max((t.sent for t in traffic), default=0.0))
        described = min(total, max((t.described for t in traffic), default=0.0))
        self._phases["send"] = sent
        self._phases["wait"] = max(0.0, described - sent) if described else total - sent
        self._phases["receive"] = max(0.0, total - max(sent, described)) if described else 0.0
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and in total."""
        return {"total": round(self._last - self._began, 4), **{k: round(v, 4) for k, v in self._phases.items()}}


def round_row(
    number: int,
    parent: Digest,
    model: Digest,
    step: Step,
    losses: Mapping[str, float | None],
    verdicts: Sequence[AdmissionResult],
    judged: Judged,
) -> dict[str, object]:
    """The line of rounds.jsonl, without its seconds. `claimed_loss` is the only word of a miner in it."""
    traffic = [verdict.result.traffic for verdict in verdicts]
    places = {line.hotkey: line.rank for line in ranks(judged.table)}
    return {
        "round": number,
        "parent": parent,
        "model": model,
        "applied": step.applied,
        "reason": step.reason,
        **losses,
        "lr": step.lr,
        "norm": step.norm,
        "rule": step.combined.by.rule,
        "f": step.combined.by.f,
        "gate": asdict(step.gate) if step.gate else None,
        "tokens": sum(v.result.issued.tokens for v in verdicts if v.status is Status.ADMITTED),
        "seconds": {},
        "bytes": {"down": sum(t.bytes_down for t in traffic), "up": sum(t.bytes_up for t in traffic)},
        "miners": [
            {**_miner_row(verdict, step), **_ranked(verdict.result.issued.miner.hotkey, places, judged)}
            for verdict in verdicts
        ],
        "evidence": as_row(judged.evidence),
    }


def _ranked(hotkey: Hotkey, places: Mapping[Hotkey, int], judged: Judged) -> dict[str, object]:
    return {"rank": places[hotkey], **miner_row(judged.entries[hotkey])}


def lapses(verdicts: Sequence[AdmissionResult]) -> dict[Hotkey, str | None]:
    """For each miner that was given an order, the reason it failed or was refused for."""
    return {v.result.issued.miner.hotkey: v.failure.reason if v.failure else None for v in verdicts}


def _miner_row(verdict: AdmissionResult, step: Step) -> dict[str, object]:
    result, failure = verdict.result, verdict.failure
    miner, traffic = result.issued.miner, result.traffic
    return {
        "hotkey": miner.hotkey,
        "axon": miner.axon,
        "status": verdict.status.value,
        "fault": failure.culprit.value if failure else None,
        "reason": failure.reason.value if failure else None,
        "detail": failure.detail if failure else None,
        "claimed_loss": result.received.contribution.claimed_loss if result.received else None,
        "tokens": result.issued.tokens if verdict.status is Status.ADMITTED else 0,
        "seconds": round(max(traffic.sent, traffic.described, traffic.received), 4),
        "bytes_down": traffic.bytes_down,
        "bytes_up": traffic.bytes_up,
        "norm": verdict.norm,
        "weight": step.weights.get(miner.hotkey, 0.0),
        "cluster": step.combined.clusters.get(miner.hotkey),
    }


def receipts(
    run_id: str,
    sender: Hotkey,
    row: Mapping[str, object],
    verdicts: Sequence[AdmissionResult],
    step: Step,
    judged: Judged,
    head: Digest,
) -> dict[Hotkey, Receipt]:
    """A receipt for every miner that was given an order; `head` is the ledger's with this round in it."""
    made = {}
    for verdict in verdicts:
        issued, failure = verdict.result.issued, verdict.failure
        entry = judged.entries[issued.miner.hotkey]
        made[issued.miner.hotkey] = Receipt(
            run_id=run_id,
            round=issued.order.round,
            sender=sender,
            receiver=issued.miner.hotkey,
            work_id=issued.work_id,
            status=verdict.status.value,
            reason=failure.reason.value if failure else None,
            culprit=failure.culprit if failure else None,
            detail=failure.detail if failure else "",
            tokens=issued.tokens if verdict.status is Status.ADMITTED else 0,
            norm=verdict.norm,
            weight=step.weights.get(issued.miner.hotkey, 0.0),
            score=entry.mark.score,
            rating=entry.after.mu,
            ranking=msgspec.convert(entry_row(entry), Ranked),
            windows=judged.evidence.picks,
            applied=step.applied,
            model=str(row["model"]),
            ledger_head=head,
        )
    return made
