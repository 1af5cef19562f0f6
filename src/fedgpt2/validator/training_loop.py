"""A run of rounds, wherever its miners are: what it is built from, the loop, and what is said of it.

`program` connects miners by HTTP, `fedgpt2.simulate` miners in this process.
"""

import contextlib
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedgpt2 import codec
from fedgpt2.aggregation.combine import check_rule
from fedgpt2.config import ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import Culprit, UsageError
from fedgpt2.event_loop import Stop, Stopped
from fedgpt2.identity.signing import Signer
from fedgpt2.link.blobs import Blob
from fedgpt2.observe.formatting import many
from fedgpt2.observe.observer import Observer
from fedgpt2.protocol.messages import MANIFEST_CODEC
from fedgpt2.ranking.replay import table_of
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.context import Run, Standings
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.rank import check_ranking
from fedgpt2.validator.round import run_round
from fedgpt2.validator.run_directory import RunDirectory
from fedgpt2.validator.suspension import Suspensions
from fedgpt2.validator.training import Training

__all__ = ["Past", "build_run", "check_names", "check_sequence", "closing", "facts", "recall", "run_rounds"]

_UNIGRAM_PAGES = 2000  # about a second of tokenising
_MOST_COMPLAINTS = 8  # told after a round; the others after the next


def check_names(config: ValidatorConfig) -> None:
    """What a run names and this version does not know is found before anything is opened."""
    for flag, name in (("--codec.state", config.codec.state), ("--codec.gradient", config.codec.gradient)):
        if name not in codec.NAMES:
            raise UsageError(f"{flag} {name}: no such codec; one of {', '.join(codec.NAMES)}")
    check_rule(config.aggregation.rule)
    check_ranking(config.ranking)


def check_sequence(config: ValidatorConfig, manifest: Manifest) -> None:
    """Raise UsageError for windows longer than the model reads."""
    if manifest.seq_len > config.model.shape.block_size:
        raise UsageError(
            f"--data.seq_len {manifest.seq_len}: {config.model.preset} reads {config.model.shape.block_size} tokens"
        )


@dataclass(frozen=True)
class Past:
    """What follows from the rounds of the ledger and no checkpoint holds."""

    absences: Suspensions
    ranking: Standings


def recall(directory: RunDirectory) -> Past:
    """Read it from the ledger, once the run stands where it goes on. Blocking, and of a long run for a while.

    It opens the ledger for itself: a validator that is told to stop meanwhile closes its own.
    """
    with contextlib.closing(directory.ledger.reader()) as ledger:
        return Past(Suspensions.of(ledger.rounds()), Standings(*table_of(ledger.rounds())))


def build_run(
    config: ValidatorConfig,
    directory: RunDirectory,
    training: Training,
    corpus: Corpus,
    signer: Signer,
    collector: Collector,
    report: Tokens,
    past: Past,
) -> Run:
    """What every round of a run works with."""
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
    return Run(config, directory, training, corpus, orders, collector, report, past.absences, past.ranking)


async def run_rounds(run: Run, done: int, stop: Stop, observer: Observer) -> int | None:
    """Rounds after `done` until enough are done, or `stop` is set; then the number of the round left unfinished.

    The round in flight when told to stop is left for a later run to finish, unless its step was taken already.
    """
    attempt, last = run.directory.ledger.attempt(), run.config.rounds
    number, rule, told = done + 1, run.config.aggregation.rule, set[tuple[str, str]]()
    _announce(run, done, observer)
    try:
        while not last or number <= last:
            row = await run_round(run, number, attempt, stop)
            observer.round_done(row)
            for line in _complaints(row, told):
                observer.notice(line)
            if row["rule"] != rule:
                rule = str(row["rule"])
                observer.notice(f"aggregated by {rule} from round {number} on: {many(_at_work(row), 'miner')} at work")
            number += 1
            if stop.is_set() and number <= (last or number):
                raise Stopped
    except Stopped:
        return number
    run.directory.reveal_key()
    return None


def _announce(run: Run, done: int, observer: Observer) -> None:
    """Say what comes before the first round."""
    if again := run.ranking.reranked:
        observer.notice(f"{many(again, 'round')} ranked by another revision of the rule: ranked again by this one")
    last = run.config.rounds
    if last and done >= last:
        way_on = "a larger one goes on, another --run.dir begins anew"
        observer.notice(f"nothing to do: round {done} is done, --rounds is {last}; {way_on}")
    else:
        observer.waiting("looking for miners")


def _complaints(row: Mapping[str, object], told: set[tuple[str, str]]) -> list[str]:
    """Why miners did not do their part, in their own words, each reason of each once: a round's line has no room."""
    miners = row["miners"]
    lines: dict[tuple[str, str], str] = {}
    for miner in miners if isinstance(miners, list) else []:
        axon, reason, detail = miner["axon"], miner["reason"], miner["detail"]
        if miner["status"] == "failed" and miner["fault"] == Culprit.MINER and detail and (axon, reason) not in told:
            lines[axon, reason] = f"{axon}: {reason}: {detail}"
    shown = list(lines)[:_MOST_COMPLAINTS]
    told.update(shown)
    return [lines[key] for key in shown]


def _at_work(row: Mapping[str, object]) -> int:
    miners = row["miners"]
    return len(miners) if isinstance(miners, list) else 0


def facts(run: Run, axons: Sequence[str], done: int) -> Mapping[str, object]:
    """What an observer is told at the start."""
    return {
        "run_dir": str(run.directory.path),
        "model": run.config.model.preset,
        "parameters": run.training.weights.flat.numel(),
        "source": run.config.data.source,
        "axons": list(axons),
        "rounds": run.config.rounds,
        "resumed_after": done,
        "aggregation": run.config.aggregation.rule,
        "unigram_loss": run.corpus.unigram(run.report) if _small(run.corpus.manifest) else None,
    }


def _small(manifest: Manifest) -> bool:
    """Whether a unigram model can be fitted while people wait: to all of the text, and nothing fetched for it."""
    return manifest.pools[Pool.ASSIGN] <= _UNIGRAM_PAGES and manifest.page_documents > 0


def closing(run: Run) -> Mapping[str, object]:
    """What an observer is told at the end."""
    return {
        "run_dir": str(run.directory.path),
        "rounds": run.directory.ledger.last_round(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
