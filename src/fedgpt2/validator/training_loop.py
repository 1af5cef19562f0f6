"""A run of rounds, wherever its miners are: building its context, the loop, and what an observer is told.

`program` puts dialled miners behind it, `fedgpt2.simulate` miners of the same process.
"""

import asyncio
import contextlib
import resource
from collections.abc import Sequence

from fedgpt2 import codec
from fedgpt2.aggregation.combine import check_rule
from fedgpt2.config import ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import Culprit, NoMinersError, UsageError
from fedgpt2.event_loop import Stop, Stopped, off_loop, until_stopped
from fedgpt2.identity.signing import Signer
from fedgpt2.link.blobs import Blob
from fedgpt2.observe.formatting import many
from fedgpt2.observe.observer import Observer, RunEnd, RunStart
from fedgpt2.protocol.messages import MANIFEST_CODEC
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.budget import check_ranking
from fedgpt2.ranking.replay import table_of
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.context import RunContext, Standings
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.round import finish_round, train_round
from fedgpt2.validator.run_directory import RunDirectory
from fedgpt2.validator.suspension import Suspensions
from fedgpt2.validator.training import Training

__all__ = ["build_context", "check_names", "check_sequence", "run_end", "run_round", "run_rounds", "run_start"]

_UNIGRAM_PAGES = 2000  # about a second of tokenising
_RETRY_SECONDS = 1.0
_MAX_COMPLAINTS = 8  # shown after a round; the others after the next


def check_names(config: ValidatorConfig) -> None:
    """Raise UsageError for a codec or a rule that this version does not know, before anything is opened."""
    for flag, name in (("--codec.state", config.codec.state), ("--codec.gradient", config.codec.gradient)):
        codec.CODECS.get(name, flag)
    check_rule(config.aggregation.rule)
    check_ranking(config.ranking)


def check_sequence(config: ValidatorConfig, manifest: Manifest) -> None:
    """Raise UsageError for windows longer than the model reads."""
    if manifest.seq_len > config.model.shape.block_size:
        raise UsageError(
            f"--data.seq_len {manifest.seq_len}: {config.model.preset} reads {config.model.shape.block_size} tokens"
        )


def build_context(
    config: ValidatorConfig,
    directory: RunDirectory,
    training: Training,
    corpus: Corpus,
    signer: Signer,
    collector: Collector,
    report: Tokens,
    stop: Stop,
) -> RunContext:
    """What every round works with. Blocking: it reads all records of a resumed run, one at a time."""
    orders = OrderBook(
        signer=signer,
        run_id=directory.run_id,
        model=config.model.shape,
        corpus=corpus,
        manifest=Blob.of(MANIFEST_CODEC, b"", memoryview(corpus.manifest.to_bytes())),
        answer_codec=codec.get(config.codec.gradient),
        windows=config.data.windows,
        budget_seconds=config.round.deadline,
        header_bytes=config.limits.header_bytes,
    )
    with contextlib.closing(directory.ledger.reader()) as ledger:
        suspensions, ranking = Suspensions(ledger.records()), Standings(*table_of(ledger.records()))
    return RunContext(config, directory, training, corpus, orders, collector, report, stop, suspensions, ranking)


async def run_rounds(ctx: RunContext, done: int, observer: Observer) -> int | None:
    """Rounds after `done` until enough are done, or told to stop; then the number of the round left unfinished.

    The round in flight when told to stop is left for a later run to finish, unless its step was taken already.
    """
    attempt, last = await off_loop(ctx.directory.ledger.attempt), ctx.config.rounds
    number, watch = done + 1, _Watch(ctx.config.aggregation.rule, observer)
    _announce(ctx, done, observer)
    try:
        while not last or number <= last:
            record = await _next_round(ctx, number, attempt, observer, first=number == done + 1)
            observer.round_done(record)
            watch.round_done(record)
            number += 1
            if ctx.stop.is_set() and number <= (last or number):
                raise Stopped
    except Stopped:
        return number
    await off_loop(ctx.directory.reveal_key)
    return None


async def run_round(ctx: RunContext, number: int, attempt: int, *, give_up: bool = True) -> RoundRecord:
    """One round. Raises Stopped, with nothing changed, if told to stop before the step."""
    trained = await until_stopped(ctx.stop, train_round(ctx, number, attempt, give_up=give_up))
    return await finish_round(ctx, trained)


async def _next_round(ctx: RunContext, number: int, attempt: int, observer: Observer, *, first: bool) -> RoundRecord:
    """One round, once a miner has a slot. The `first` of a process gives up; later ones wait."""
    announced = False
    while True:
        try:
            return await run_round(ctx, number, attempt, give_up=first)
        except NoMinersError as error:
            if first:
                raise
            if not announced:
                observer.notice(f"{error}; waiting for them")
            announced = True
            await until_stopped(ctx.stop, asyncio.sleep(_RETRY_SECONDS))


def _announce(ctx: RunContext, done: int, observer: Observer) -> None:
    """Say what comes before the first round."""
    if again := ctx.ranking.reranked:
        observer.notice(f"{many(again, 'round')} ranked by another revision of the rule: ranked again by this one")
    last = ctx.config.rounds
    if last and done >= last:
        way_on = "a larger one goes on, another --run.dir begins anew"
        observer.notice(f"nothing to do: round {done} is done, --rounds is {last}; {way_on}")
    else:
        observer.waiting("looking for miners")


class _Watch:
    """Notices about rounds: each miner's reason for not delivering, once; and a change of the aggregation rule."""

    def __init__(self, rule: str, observer: Observer) -> None:
        self._rule = rule
        self._observer = observer
        self._told: set[tuple[str, str]] = set()

    def round_done(self, record: RoundRecord) -> None:
        """Say what is new in a round."""
        for line in self._complaints(record):
            self._observer.notice(line)
        if record.rule != self._rule:
            self._rule = record.rule
            count = many(len(record.miners), "miner")
            self._observer.notice(f"aggregated by {record.rule} from round {record.round} on: {count} at work")

    def _complaints(self, record: RoundRecord) -> list[str]:
        lines: dict[tuple[str, str], str] = {}
        for miner in record.miners:
            key = (miner.axon, miner.reason or "")
            if miner.status == "failed" and miner.fault == Culprit.MINER and miner.detail and key not in self._told:
                lines[key] = f"{miner.axon}: {miner.reason}: {miner.detail}"
        shown = list(lines)[:_MAX_COMPLAINTS]
        self._told.update(shown)
        return [lines[key] for key in shown]


def run_start(ctx: RunContext, axons: Sequence[str], done: int) -> RunStart:
    """What an observer is told at the start. Blocking: it may fit a unigram model."""
    return RunStart(
        run_dir=str(ctx.directory.path),
        model=ctx.config.model.preset,
        parameters=ctx.training.weights.flat.numel(),
        source=ctx.config.data.source,
        axons=tuple(axons),
        rounds=ctx.config.rounds,
        resumed_after=done,
        aggregation=ctx.config.aggregation.rule,
        unigram_loss=ctx.corpus.unigram(ctx.report) if _small(ctx.corpus.manifest) else None,
    )


def _small(manifest: Manifest) -> bool:
    """Whether a unigram model of the whole text can be fitted while people wait."""
    return manifest.pools[Pool.ASSIGN] <= _UNIGRAM_PAGES and manifest.page_documents > 0


def run_end(ctx: RunContext) -> RunEnd:
    """What an observer is told at the end."""
    return RunEnd(
        run_dir=str(ctx.directory.path),
        rounds=ctx.directory.ledger.last_round(),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
