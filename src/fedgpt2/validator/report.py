"""From what a round did to its record, and the clock that times its phases."""

import time
from collections.abc import Sequence
from dataclasses import asdict

from fedgpt2.link.base import Traffic
from fedgpt2.protocol.round_record import Bytes, Evidence, GateRecord, MinerRecord, PhaseSeconds, RoundRecord
from fedgpt2.types import Digest
from fedgpt2.validator.admission import AdmissionResult, Status
from fedgpt2.validator.step import Step

__all__ = ["Clock", "miner_record", "round_record"]


class Clock:
    """Seconds of a round's phases by the validator's monotonic clock."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._phases: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """Add the time since the last mark to `phase`, a field of PhaseSeconds."""
        now = time.monotonic()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._last
        self._last = now

    def mark_collected(self, traffic: Sequence[Traffic]) -> None:
        """Split the time since the last mark into send, wait and receive, which overlap between miners.

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

    def seconds(self) -> PhaseSeconds:
        """The phases so far, and their sum."""
        phases = {name: round(spent, 4) for name, spent in self._phases.items()}
        return PhaseSeconds(total=round(self._last - self._began, 4), **phases)


def round_record(
    *,
    number: int,
    attempt: int,
    parent: Digest,
    model: Digest,
    step: Step,
    train_loss: float,
    initial_val_loss: float | None,
    val_loss: float | None,
    results: Sequence[AdmissionResult],
    evidence: Evidence,
    seconds: PhaseSeconds,
) -> RoundRecord:
    """The record of a round, without its ranking. `claimed_loss` is the only value in it that is a miner's word."""
    miners = tuple(miner_record(result, step) for result in results)
    return RoundRecord(
        round=number,
        attempt=attempt,
        parent=parent,
        model=model,
        applied=step.applied,
        reason=step.reason.value if step.reason else None,
        train_loss=train_loss,
        val_loss=val_loss,
        initial_val_loss=initial_val_loss,
        lr=step.lr,
        norm=step.norm,
        rule=step.combined.by.rule,
        f=step.combined.by.f,
        gate=GateRecord(**asdict(step.gate)) if step.gate else None,
        tokens=sum(miner.tokens for miner in miners if miner.admitted),
        seconds=seconds,
        bytes=Bytes(down=sum(miner.bytes_down for miner in miners), up=sum(miner.bytes_up for miner in miners)),
        miners=miners,
        evidence=evidence,
    )


def miner_record(result: AdmissionResult, step: Step) -> MinerRecord:
    """One miner's part of the record, without its ranking."""
    order, received, failure = result.result.issued, result.result.received, result.failure
    traffic = result.result.traffic
    return MinerRecord(
        hotkey=order.miner.hotkey,
        axon=order.miner.axon,
        slot=order.order.assignment.slot,
        work_id=order.work_id,
        status=result.status.value,
        fault=failure.culprit.value if failure else None,
        reason=failure.reason.value if failure else None,
        detail=failure.detail if failure else None,
        claimed_loss=received.contribution.claimed_loss if received else None,
        tokens=order.tokens,
        seconds=round(max(traffic.sent, traffic.described, traffic.received), 4),
        committed=traffic.described or None,
        bytes_down=traffic.bytes_down,
        bytes_up=traffic.bytes_up,
        digest=Digest(received.contribution.blob.digest) if received else None,
        norm=result.norm if result.status is Status.ADMITTED else None,
        cluster=step.combined.clusters.get(order.miner.hotkey),
        weight=step.weights.get(order.miner.hotkey, 0.0),
    )
