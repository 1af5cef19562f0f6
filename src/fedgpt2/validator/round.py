"""The round, on one page.

Who could hurt the model, and where it is stopped: `link.receive` and `admission` list what a contribution must pass
before it counts, `step` what an admitted one can still do.

`train_round` changes nothing of the run: it may be cancelled at any await. `finish_round` takes the step and commits;
it runs to its end. Everything that blocks (tensors, text, disk) runs in a thread, through `Round.work`.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fedgpt2.aggregation.combine import quorum
from fedgpt2.event_loop import Stopped, off_loop, until_stopped
from fedgpt2.protocol.round_record import Evidence, RoundRecord
from fedgpt2.ranking.table import advance, rating_lines, with_ranking
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.admission import AdmissionResult, admissions, admit
from fedgpt2.validator.combined import Combined
from fedgpt2.validator.context import RunContext
from fedgpt2.validator.membership import assign_slots
from fedgpt2.validator.report import Clock, round_record
from fedgpt2.validator.scoring import Scoring, draw_scoring, measure
from fedgpt2.validator.step import Gate, aggregate, apply_step, try_step
from fedgpt2.validator.training import Snapshot

__all__ = ["Round", "finish_round", "train_round"]

P = ParamSpec("P")
T = TypeVar("T")


class Round:
    """One round in progress: what is known of it so far; each attribute is set by the stage that its comment names."""

    snapshot: Snapshot  # 3
    results: list[AdmissionResult]  # 5
    scoring: Scoring  # 7
    initial_val_loss: float | None = None  # 7
    combined: Combined  # 8
    evidence: Evidence  # 8
    gate: Gate | None  # 9

    def __init__(self, number: int, attempt: int) -> None:
        self.number = number
        self.attempt = attempt
        self.clock = Clock()

    async def work(self, phase: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Result of `function`, run in a thread; its time counts as `phase`."""
        result = await off_loop(function, *args, **kwargs)
        self.clock.mark(phase)
        return result


async def train_round(ctx: RunContext, number: int, attempt: int, *, give_up: bool = True) -> Round:
    """Steps 1 to 9 but for the step itself: from the miners' orders to a step that passed the loss gate.

    `give_up`: raise NoMinersError where no miner connects in time, instead of waiting.
    """
    config, training = ctx.config, ctx.training

    # 1-2  select miners; a slot each, whose slice of the text is its own
    present = await ctx.collector.present(config.round.min_miners, give_up=give_up)
    now = Round(number, attempt)
    miners = await now.work("snapshot", assign_slots, ctx, present, number)

    # 3  encode and digest the state once; write the orders
    now.snapshot = await now.work("snapshot", training.snapshot)
    state = now.snapshot.blob
    orders = await now.work("snapshot", ctx.orders.write, number, attempt, now.snapshot.model, state.ref, miners)
    blobs = {Digest(blob.ref.digest): blob for blob in (state, ctx.orders.manifest)}

    # 4  order from all at once; collect until the deadline or the quorum
    enough = quorum(config.aggregation.rule, len(orders), config.round.quorum)
    received = await ctx.collector.collect(orders, blobs, deadline=config.round.deadline, quorum=enough)
    now.clock.mark_collected([each.traffic for each in received])

    # 5-6  admit; commit the admitted set before the step
    now.results = await now.work("admit", admit, received, config.limits, ctx.directory.buffers.lease)
    admitted = admissions(now.results)
    await now.work("admit", ctx.directory.ledger.admit, number, attempt, admitted)

    # 7  the validator's own loss, on windows that nobody could know before the admitted set was fixed
    now.scoring = await now.work("rank", draw_scoring, ctx, number, [each.digest for each in admitted])
    if number == 1:
        now.initial_val_loss = await now.work("evaluate", training.loss, ctx.report)

    # 8  aggregate: how many may be hostile was fixed by how many were asked, less those refused for a fault
    now.combined = await now.work("aggregate", aggregate, ctx, number, now.results)
    now.evidence = await now.work("rank", measure, ctx, number, now.results, now.combined, now.scoring)

    # 9  loss gate: the largest share of the step that does no harm on the windows of 7
    now.gate = await now.work("gate", try_step, ctx, number, now.combined, now.scoring)
    return now


async def finish_round(ctx: RunContext, now: Round) -> RoundRecord:
    """Take the step, or keep the weights and say why; evaluate, rank, checkpoint, commit, send receipts (9, 7, 10)."""
    config, training, number = ctx.config, ctx.training, now.number
    step = await now.work("step", apply_step, ctx, number, now.combined, now.gate)
    model = await now.work("step", training.digest)
    val_loss = await _val_loss(ctx, now)

    due = number % config.checkpoint.every == 0
    checkpoint = await now.work("checkpoint", ctx.directory.save, number, now.attempt, training) if due else None
    record = round_record(
        number=number,
        attempt=now.attempt,
        parent=now.snapshot.model,
        model=model,
        step=step,
        train_loss=now.scoring.train_loss,
        initial_val_loss=now.initial_val_loss,
        val_loss=val_loss,
        results=now.results,
        evidence=now.evidence,
        seconds=now.clock.seconds(),
    )
    table, entries = await off_loop(advance, ctx.ranking.table, record)
    record = with_ranking(record, table, entries)
    await _commit(ctx, record, checkpoint, rating_lines(table))
    ctx.ranking.table = table
    ctx.suspensions.add(record)
    ctx.collector.deliver()
    return record


async def _commit(ctx: RunContext, record: RoundRecord, checkpoint: str | None, ratings: dict[Hotkey, bytes]) -> None:
    """One transaction: the record, the ratings after it, its receipts, and which earlier receipts have arrived."""
    outbox = ctx.directory.outbox
    delivered = outbox.delivered()
    receipts = await off_loop(
        ctx.directory.commit,
        record,
        checkpoint,
        keep=ctx.config.checkpoint.keep,
        sender=ctx.signer.hotkey,
        ratings=ratings,
        delivered=delivered,
    )
    outbox.forget(delivered)
    outbox.add(receipts)


async def _val_loss(ctx: RunContext, now: Round) -> float | None:
    """The held-out loss where the schedule asks for it; None elsewhere, and when told to stop meanwhile."""
    if now.number % ctx.config.run.eval_every and now.number != ctx.config.rounds:
        return None
    try:
        return await until_stopped(ctx.stop, now.work("evaluate", ctx.training.loss, ctx.report))
    except Stopped:
        return None
