"""`fedgpt2 validator` from settings to exit code: what is checked in which order, the loop of rounds, the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch

from fedgpt2.config import ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import CorpusError, NoMinersError, UsageError
from fedgpt2.event_loop import Stop, Stopped, entered_off_loop, off_loop, until_stopped
from fedgpt2.identity.pins import KeyBook, require_pins
from fedgpt2.identity.signing import Signer
from fedgpt2.identity.wallet import open_hotkey
from fedgpt2.link.address import Address, parse
from fedgpt2.link.client import open_session
from fedgpt2.model.hardware import prepare
from fedgpt2.observe.observer import Observer
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.compatibility import check_miner
from fedgpt2.validator.discovery import Discovery
from fedgpt2.validator.requirements import check_machine
from fedgpt2.validator.run_directory import RunDirectory, open_run_directory
from fedgpt2.validator.training import Training
from fedgpt2.validator.training_loop import (
    build_context,
    check_names,
    check_sequence,
    run_end,
    run_rounds,
    run_start,
)

__all__ = ["run_validator"]


async def run_validator(config: ValidatorConfig, stop: Stop, observer: Observer) -> int:
    """Train until `config.rounds` are done or `stop` is set; returns the exit code.

    Raises a FedGPT2Error, one line, for whatever keeps the run from starting or going on.
    """
    device = prepare(config.device, config.run.threads)
    addresses = _addresses(config)
    check_names(config)
    try:
        return await _train(config, device, addresses, stop, observer)
    except Stopped:
        observer.notice("stopped before the first round")
        return 0


async def _train(
    config: ValidatorConfig, device: torch.device, addresses: list[Address], stop: Stop, observer: Observer
) -> int:
    opening = off_loop(Corpus.open, config.data, config.model.shape.block_size, config.run.seed)
    corpus = await until_stopped(stop, opening)
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
    check_sequence(config, corpus.manifest)
    if corpus.source.credit:
        observer.notice(corpus.source.credit)
    loopback = all(address.loopback for address in addresses)
    signer = Signer(await off_loop(open_hotkey, config.wallet, create=loopback, notice=observer.notice))
    async with entered_off_loop(open_run_directory(config, corpus.manifest)) as directory:
        observer.notice(await off_loop(check_machine, config, device, len(addresses)))
        training = await off_loop(Training, config, device)
        done = await off_loop(directory.resume, config, training, observer.notice)
        report = await until_stopped(stop, off_loop(corpus.report, directory.key, config.run.eval_windows))
        corpus.load_held_out()
        try:
            async with _collector(config, addresses, signer, directory, observer) as collector:
                building = off_loop(build_context, config, directory, training, corpus, signer, collector, report, stop)
                ctx = await until_stopped(stop, building)
                observer.started(await off_loop(run_start, ctx, [str(address) for address in addresses], done))
                unfinished = await run_rounds(ctx, done, observer)
        except (CorpusError, NoMinersError):  # both come before a round's step: the weights are those of a whole round
            await off_loop(directory.save_last, training, config.checkpoint.keep)
            raise
        await off_loop(directory.save_last, training, config.checkpoint.keep)
        if unfinished is not None:
            observer.notice(f"stopped before the end of round {unfinished}; start again to go on from there")
        observer.finished(await off_loop(run_end, ctx))
    return 0


def _addresses(config: ValidatorConfig) -> list[Address]:
    addresses = [parse(text) for text in config.axons.addresses]
    if not addresses:
        raise UsageError("no miners given; name them with --axons, e.g. --axons 8091 8092")
    if len({str(address) for address in addresses}) < len(addresses):
        raise UsageError("--axons names an address twice")
    if len(addresses) > config.data.max_slots:
        raise UsageError(
            f"--axons names {len(addresses)} miners, --data.max_slots is {config.data.max_slots}: raise it"
        )
    require_pins(addresses)
    return addresses


@asynccontextmanager
async def _collector(
    config: ValidatorConfig, addresses: list[Address], signer: Signer, directory: RunDirectory, observer: Observer
) -> AsyncIterator[Collector]:
    """A collector that is connected to the miners at the addresses as they are found."""
    ledger = directory.ledger
    reserved = {address.hotkey: str(address) for address in addresses if address.hotkey is not None}
    collector = Collector(
        signer, directory.outbox, directory.buffers.lease, observer.notice, wait_seconds=config.axons.wait_seconds
    )
    async with open_session(config.limits) as session:
        discovery = Discovery(
            session,
            signer,
            config.axons,
            addresses,
            config.limits,
            KeyBook(await off_loop(ledger.axon_keys), reserved),
            collector,
            record=ledger.record_axon,
            check_miner=partial(check_miner, config, ledger),
        )
        discovery.start()
        try:
            yield collector
        finally:
            await collector.close()
