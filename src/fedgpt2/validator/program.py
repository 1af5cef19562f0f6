"""`fedgpt2 validator` from settings to exit code: what is checked in which order, the loop of rounds, the end."""

import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import torch

from fedgpt2 import codec
from fedgpt2.aggregation.combine import check_rule
from fedgpt2.config import ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import CorpusError, NoMinersError, UsageError
from fedgpt2.identity.pins import KeyBook, require_pins
from fedgpt2.identity.signing import Signer
from fedgpt2.identity.wallet import open_hotkey
from fedgpt2.model.hardware import prepare
from fedgpt2.network.address import Address, parse
from fedgpt2.network.client import open_session
from fedgpt2.network.loop import Stop
from fedgpt2.network.threads import off_loop
from fedgpt2.observe.observer import Observer
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.messages import BlobRef
from fedgpt2.validator.http_peers import HttpPeers
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.patience import Stopped, unless
from fedgpt2.validator.peers import Parcel
from fedgpt2.validator.round import run_round
from fedgpt2.validator.run import Run
from fedgpt2.validator.run_directory import RunDirectory, open_run_directory
from fedgpt2.validator.training import Training

__all__ = ["run_validator"]

_UNIGRAM_PAGES = 2000  # about a second of tokenising


async def run_validator(config: ValidatorConfig, stop: Stop, observer: Observer) -> int:
    """Train until `config.rounds` are done or `stop` is set; returns the exit code.

    Raises a FedGPT2Error, one line, for whatever keeps the run from starting or going on.
    """
    device = prepare(config.device, config.run.threads)
    addresses = _addresses(config)
    _check_names(config)
    try:
        return await _train(config, device, addresses, stop, observer)
    except Stopped:
        observer.notice("stopped before the first round")
        return 0


async def _train(
    config: ValidatorConfig, device: torch.device, addresses: list[Address], stop: Stop, observer: Observer
) -> int:
    opening = off_loop(Corpus.open, config.data, config.model.shape.block_size, config.run.seed)
    corpus = await unless(stop, opening)
    try:
        return await _train_on(corpus, config, device, addresses, stop, observer)
    finally:
        await off_loop(corpus.close)


async def _train_on(
    corpus: Corpus,
    config: ValidatorConfig,
    device: torch.device,
    addresses: list[Address],
    stop: Stop,
    observer: Observer,
) -> int:
    _check_sequence(config, corpus.manifest)
    if corpus.source.credit:
        observer.notice(corpus.source.credit)
    loopback = all(address.loopback for address in addresses)
    signer = Signer(open_hotkey(config.wallet, create=loopback, notice=observer.notice))
    with open_run_directory(config, corpus.manifest) as directory:
        training = await off_loop(Training, config, device)
        done = await off_loop(directory.resume, config, training, observer.notice)
        report = await unless(stop, off_loop(corpus.report, directory.key, config.run.eval_windows))
        corpus.load_held_out()
        async with _peers(config, addresses, signer, directory, observer) as peers:
            run = _run(config, directory, training, corpus, signer, peers, report)
            observer.started(await off_loop(_facts, run, addresses, done))
            try:
                await _rounds(run, done, stop, observer)
            except (CorpusError, NoMinersError):  # both come before a round's step: what is trained is whole
                await off_loop(directory.save_last, training, config.checkpoint.keep)
                raise
        await off_loop(directory.save_last, training, config.checkpoint.keep)
        observer.finished(_closing(run))
    return 0


def _addresses(config: ValidatorConfig) -> list[Address]:
    addresses = [parse(text) for text in config.axons.addresses]
    if not addresses:
        raise UsageError("no miners given; name them with --axons, e.g. --axons 8091 8092")
    if len({str(address) for address in addresses}) < len(addresses):
        raise UsageError("--axons names an address twice")
    require_pins(addresses)
    return addresses


def _check_names(config: ValidatorConfig) -> None:
    """What a run names and this version does not know is found before anything is opened."""
    for flag, name in (("--codec.state", config.codec.state), ("--codec.gradient", config.codec.gradient)):
        if name not in codec.NAMES:
            raise UsageError(f"{flag} {name}: no such codec; one of {', '.join(codec.NAMES)}")
    check_rule(config.aggregation.rule)


def _check_sequence(config: ValidatorConfig, manifest: Manifest) -> None:
    if manifest.seq_len > config.model.shape.block_size:
        raise UsageError(
            f"--data.seq_len {manifest.seq_len}: {config.model.preset} reads {config.model.shape.block_size} tokens"
        )


@asynccontextmanager
async def _peers(
    config: ValidatorConfig, addresses: list[Address], signer: Signer, directory: RunDirectory, observer: Observer
) -> AsyncIterator[HttpPeers]:
    reserved = {address.hotkey: str(address) for address in addresses if address.hotkey is not None}
    book = KeyBook(directory.ledger.axon_keys(), reserved)
    record = directory.ledger.record_axon
    async with open_session(config.limits) as session:
        peers = HttpPeers(
            session, signer, config.axons, addresses, config.limits, book, record=record, notice=observer.notice
        )
        peers.start()
        try:
            yield peers
        finally:
            await peers.close()


def _run(
    config: ValidatorConfig,
    directory: RunDirectory,
    training: Training,
    corpus: Corpus,
    signer: Signer,
    peers: HttpPeers,
    report: Tokens,
) -> Run:
    orders = OrderBook(
        signer=signer,
        run_id=directory.run_id,
        model=config.model.shape,
        corpus=corpus,
        manifest=_manifest_parcel(corpus.manifest),
        answer_codec=codec.get(config.codec.gradient),
        windows=config.data.windows,
        budget_seconds=config.round.deadline,
        header_bytes=config.limits.header_bytes,
    )
    return Run(config, directory, training, corpus, orders, peers, report)


def _manifest_parcel(manifest: Manifest) -> Parcel:
    data = manifest.to_bytes()
    return Parcel(BlobRef(digest=blob_digest(data), length=len(data), codec="json"), b"", memoryview(data))


async def _rounds(run: Run, done: int, stop: Stop, observer: Observer) -> None:
    """Rounds until enough are done; told to stop, the round in flight is left for a later run to finish."""
    attempt, last = run.directory.ledger.attempt(), run.config.rounds
    number, rule = done + 1, run.config.aggregation.rule
    observer.waiting("looking for miners")
    try:
        while not last or number <= last:
            row = await run_round(run, number, attempt, stop)
            observer.round_done(row)
            if row["rule"] != rule:
                rule = str(row["rule"])
                observer.notice(f"{_count(row['miners'])} at work: aggregated by {rule} from here on")
            number += 1
            if stop.is_set() and number <= (last or number):
                raise Stopped
    except Stopped:
        observer.notice(f"stopped before the end of round {number}; start again to go on from there")
        return
    run.directory.reveal_key()


def _count(miners: object) -> str:
    number = len(miners) if isinstance(miners, list) else 0
    return f"{number} miner{'s' if number != 1 else ''}"


def _facts(run: Run, addresses: list[Address], done: int) -> Mapping[str, object]:
    """What the console shows at the start."""
    return {
        "run_dir": str(run.directory.path),
        "model": run.config.model.preset,
        "parameters": run.training.weights.flat.numel(),
        "source": run.config.data.source,
        "axons": [str(address) for address in addresses],
        "rounds": run.config.rounds,
        "resumed_after": done,
        "aggregation": run.config.aggregation.rule,
        "unigram_loss": run.corpus.unigram(run.report) if _small(run.corpus.manifest) else None,
    }


def _small(manifest: Manifest) -> bool:
    """Whether a unigram model can be fitted while people wait: to all of the text, and nothing fetched for it."""
    return manifest.pools[Pool.ASSIGN] <= _UNIGRAM_PAGES and manifest.page_documents > 0


def _closing(run: Run) -> Mapping[str, object]:
    return {
        "run_dir": str(run.directory.path),
        "rounds": run.directory.ledger.last_round(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
