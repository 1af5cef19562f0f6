"""The round, on one page.

Who could hurt the model, and where it is stopped: `admission` lists what a contribution must pass before it counts,
`step` what those that passed can still do.
"""

from collections.abc import Sequence
from functools import partial

from fedgpt2.aggregation.combine import quorum
from fedgpt2.errors import NoMinersError
from fedgpt2.event_loop import Stop, Stopped, off_loop, until_stopped
from fedgpt2.ledger.ledger import Admission
from fedgpt2.ranking.record import kept
from fedgpt2.types import Digest
from fedgpt2.validator.admission import AdmissionResult, Status, admit
from fedgpt2.validator.context import Run
from fedgpt2.validator.peers import ConnectedMiner
from fedgpt2.validator.rank import measure_contributions, rank, score
from fedgpt2.validator.report import Clock, lapses, receipts, round_row
from fedgpt2.validator.step import aggregate, gate, take

__all__ = ["run_round"]


async def run_round(run: Run, number: int, attempt: int, stop: Stop) -> dict[str, object]:
    """One round; returns its line of rounds.jsonl. Raises Stopped, with nothing changed, if told to before the step."""
    config, training, directory = run.config, run.training, run.directory

    # 1-3  select miners, assign each a disjoint slice, encode and digest the state once
    present = await until_stopped(stop, run.peers.present(config.round.min_miners))
    seats = seat_slots(run, present, number)
    clock = Clock()
    snapshot = await off_loop(training.snapshot)
    writing = off_loop(run.orders.write, number, attempt, snapshot.model, snapshot.blob.ref, seats)
    tickets = await until_stopped(stop, writing)
    blobs = {Digest(blob.ref.digest): blob for blob in (snapshot.blob, run.orders.manifest)}
    clock.mark("snapshot")

    # 4  order from all at once; gather until the deadline or the quorum
    enough = quorum(config.aggregation.rule, len(tickets), config.round.quorum)
    gathering = run.peers.gather(tickets, blobs, deadline=config.round.deadline, quorum=enough)
    outcomes = await until_stopped(stop, gathering)
    clock.gathered([outcome.traffic for outcome in outcomes])

    # 5-6  admit; the admitted set is committed before the step
    verdicts = await until_stopped(stop, off_loop(admit, outcomes, config.limits, directory.buffers.lease))
    admissions = [_admission(verdict) for verdict in verdicts if verdict.status is Status.ADMITTED]
    directory.ledger.admit(number, attempt, admissions)
    clock.mark("admit")

    # 7  the validator's own loss, on windows that nobody could know before the admitted set was fixed
    digests = [admission.digest for admission in admissions]
    scoring = await until_stopped(stop, off_loop(score, run, number, digests))
    losses: dict[str, float | None] = {"train_loss": scoring.loss}
    if number == 1:
        losses["initial_val_loss"] = await until_stopped(stop, off_loop(training.loss, run.report))
    clock.mark("rank")

    # 8  aggregate: how many may be hostile was fixed by how many were asked, less those caught above
    combined = await until_stopped(stop, off_loop(aggregate, run, number, verdicts))
    clock.mark("aggregate")
    measured = await until_stopped(stop, off_loop(measure_contributions, run, number, verdicts, combined, scoring))
    clock.mark("rank")

    # 9  loss gate on windows of 7, then the optimizer step; or keep the weights and say why
    passed = await until_stopped(stop, off_loop(gate, run, number, combined, scoring.gate_windows, scoring.loss))
    clock.mark("gate")
    step = await off_loop(take, run, number, combined, passed)
    model = await off_loop(training.digest)
    clock.mark("step")

    # 10  evaluate on schedule, rate by the evidence, checkpoint, commit; receipts leave after the commit
    losses["val_loss"] = await _held_out_loss(run, number, stop)
    clock.mark("evaluate")
    judged = await off_loop(rank, run, number, verdicts, step, scoring, measured)
    row = round_row(number, snapshot.model, model, step, losses, verdicts, judged)
    clock.mark("rank")
    due = number % config.checkpoint.every == 0
    checkpoint = await off_loop(directory.save, number, training, {"attempt": attempt}) if due else None
    clock.mark("checkpoint")
    row = {**row, "seconds": clock.seconds()}
    said = partial(receipts, directory.run_id, run.orders.signer.hotkey, row, verdicts, step, judged)
    directory.commit(number, attempt, row, checkpoint, config.checkpoint.keep, kept(judged.table), said)
    run.ranking.table = judged.table
    run.absences.add(number, lapses(verdicts))
    run.peers.deliver()
    return row


def seat_slots(run: Run, present: Sequence[ConnectedMiner], number: int) -> list[tuple[ConnectedMiner, int]]:
    """The miners that get work in round `number`, each with its own slot for the whole run.

    Raises NoMinersError where every slot is another miner's.
    """
    ledger, most = run.directory.ledger, run.config.data.max_slots
    slots = {seat: slot for seat in present if (slot := ledger.slot_of(seat.hotkey, most)) is not None}
    if present and not slots:
        raise NoMinersError(f"all {most} slots of this run were given to other miners: start another run")
    working = run.absences.at_work([*slots], number, run.config.round.min_miners)
    return sorted(((seat, slots[seat]) for seat in working), key=lambda pair: pair[1])


def _admission(verdict: AdmissionResult) -> Admission:
    ticket, answer = verdict.outcome.ticket, verdict.outcome.answer
    digest = Digest(answer.contribution.blob.digest if answer else "")
    return Admission(ticket.seat.hotkey, ticket.work_id, digest, ticket.tokens)


async def _held_out_loss(run: Run, number: int, stop: Stop) -> float | None:
    """val_loss where the schedule asks for it; None elsewhere, and when told to stop meanwhile."""
    if number % run.config.run.eval_every and number != run.config.rounds:
        return None
    try:
        return await until_stopped(stop, off_loop(run.training.loss, run.report))
    except Stopped:
        return None
