"""`fedgpt2 validator` from settings to exit code: what is checked in which order, the loop of rounds, the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import torch

from fedgpt2.config import ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import CorpusError, NoMinersError, UsageError
from fedgpt2.event_loop import Stop, Stopped, off_loop, until_stopped
from fedgpt2.identity.pins import KeyBook, require_pins
from fedgpt2.identity.signing import Signer
from fedgpt2.identity.wallet import open_hotkey
from fedgpt2.link.address import Address, parse
from fedgpt2.link.client import open_session
from fedgpt2.model.hardware import prepare
from fedgpt2.observe.observer import Observer
from fedgpt2.validator.compatibility import check_miner
from fedgpt2.validator.http_peers import DialledMiners
from fedgpt2.validator.run_directory import RunDirectory, open_run_directory
from fedgpt2.validator.training import Training
from fedgpt2.validator.training_loop import build_run, check_names, check_sequence, closing, facts, recall, run_rounds

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
    signer = Signer(open_hotkey(config.wallet, create=loopback, notice=observer.notice))
    with open_run_directory(config, corpus.manifest) as directory:
        training = await off_loop(Training, config, device)
        done = await off_loop(directory.resume, config, training, observer.notice)
        report = await until_stopped(stop, off_loop(corpus.report, directory.key, config.run.eval_windows))
        past = await until_stopped(stop, off_loop(recall, directory))
        corpus.load_held_out()
        try:
            async with _peers(config, addresses, signer, directory, observer) as peers:
                run = build_run(config, directory, training, corpus, signer, peers, report, past)
                observer.started(await off_loop(facts, run, [str(address) for address in addresses], done))
                unfinished = await run_rounds(run, done, stop, observer)
        except (CorpusError, NoMinersError):  # both come before a round's step: what is trained is whole
            await off_loop(directory.save_last, training, config.checkpoint.keep)  # nobody writes the ledger beside it
            raise
        await off_loop(directory.save_last, training, config.checkpoint.keep)
        if unfinished is not None:
            observer.notice(f"stopped before the end of round {unfinished}; start again to go on from there")
        observer.finished(closing(run))
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
async def _peers(
    config: ValidatorConfig, addresses: list[Address], signer: Signer, directory: RunDirectory, observer: Observer
) -> AsyncIterator[DialledMiners]:
    reserved = {address.hotkey: str(address) for address in addresses if address.hotkey is not None}
    book = KeyBook(directory.ledger.axon_keys(), reserved)
    record = directory.ledger.record_axon
    async with open_session(config.limits) as session:
        peers = DialledMiners(
            session,
            signer,
            config.axons,
            addresses,
            config.limits,
            book,
            outbox=directory.ledger.outbox,
            record=record,
            notice=observer.notice,
            check_miner=partial(check_miner, config, directory.ledger),
            lease=directory.buffers.lease,
        )
        peers.start()
        try:
            yield peers
        finally:
            await peers.close()
