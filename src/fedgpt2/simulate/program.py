"""`fedgpt2 simulate`: a run whose miners live in this process. Everything but them is the validator's own.

Deterministic by `--run.seed`: the same seed on the same machine gives the same result to the last bit, seconds aside.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TypeVar

import msgspec
import torch

from fedgpt2 import codec
from fedgpt2.config import Checkpoint, SimulationConfig, ValidatorConfig, path_of
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import build
from fedgpt2.data.pages import PageSource, Pool
from fedgpt2.data.sample import SampleSource
from fedgpt2.data.sources import open_source, open_store
from fedgpt2.errors import UsageError
from fedgpt2.event_loop import Stop, Stopped, off_loop, until_stopped
from fedgpt2.gradient import registry
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.model.hardware import prepare
from fedgpt2.observe.board import Board, Recorder
from fedgpt2.observe.observer import Observer, RunEnd, RunStart
from fedgpt2.ranking.table import ranks
from fedgpt2.simulate.attacks.base import Attack
from fedgpt2.simulate.attacks.registry import ATTACKS, build_attack
from fedgpt2.simulate.honest_miners import Behaviour, Engine, HonestMiners
from fedgpt2.simulate.instrumentation import Gauge, WatchedTraining
from fedgpt2.simulate.participants import Participants, draw_participants, draws, validator_signer
from fedgpt2.simulate.peers import SimulatedMiners
from fedgpt2.simulate.result import Result, Scribe
from fedgpt2.storage.files import disk_errors
from fedgpt2.validator.run_directory import open_run_directory
from fedgpt2.validator.training_loop import (
    build_context,
    check_names,
    check_sequence,
    run_end,
    run_rounds,
    run_start,
)

__all__ = ["ABSENT", "NONE", "run_simulation", "simulate"]

NONE, ABSENT = "none", "absent"  # the hostile ones are honest too; they are not there
E = TypeVar("E", RunStart, RunEnd)

_NEVER = 1 << 40  # rounds
_AS_ASKED: Mapping[int, Behaviour] = MappingProxyType({})


def simulate(
    config: SimulationConfig,
    observer: Observer | None = None,
    *,
    behaviours: Mapping[int, Behaviour] = _AS_ASKED,
    attack: Callable[[], Attack] | None = None,
) -> Result:
    """Run a simulation to its end.

    `behaviours`: what honest miners do otherwise than asked, by index of the miner (`simulate.crowd`); those of
    hostile miners are not looked at. `attack`: what the hostile ones do, in place of the arena's `config.attack`.
    Raises a FedGPT2Error, one line, for settings that make no run, for a training that diverges, and inside an event
    loop that runs already.
    """
    if _in_a_loop():
        raise UsageError("simulate() cannot run inside an event loop, a notebook's for one: await run_simulation(...)")
    return asyncio.run(run_simulation(config, None, observer, behaviours=behaviours, attack=attack))


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def run_simulation(
    config: SimulationConfig,
    stop: Stop | None = None,
    observer: Observer | None = None,
    *,
    behaviours: Mapping[int, Behaviour] = _AS_ASKED,
    attack: Callable[[], Attack] | None = None,
) -> Result:
    """As `simulate`, for who has an event loop; `stop` ends it early, with what there is by then."""
    _check(config)
    roster = draw_participants(
        config.miners, config.byzantine if attack or config.attack != NONE else 0, config.run.seed
    )
    with _folder(config) as folder:
        settings = _settings(config, folder)
        check_names(settings)
        device = prepare(config.device, config.run.threads)
        play = _Play(config, settings, device, roster, _liars(config, attack), behaviours)
        return await play.run(stop or Stop(), observer or Recorder(Board()))


def _check(config: SimulationConfig) -> None:
    """Raise UsageError for a cast that cannot be."""
    known = (NONE, ABSENT, *ATTACKS.names)
    if config.attack not in known and ":" not in config.attack:
        raise UsageError(f"--attack {config.attack}: no such attack; one of {', '.join(known)}")
    if config.byzantine >= config.miners:
        raise UsageError(f"--byzantine {config.byzantine}: fewer than --miners {config.miners}, or nobody is honest")
    if config.attack != NONE and not config.byzantine:
        raise UsageError(f"--attack {config.attack}: --byzantine says how many of the miners it is; at least 1")


@dataclass(frozen=True)
class _Play:
    """The parts of one simulation."""

    config: SimulationConfig
    settings: ValidatorConfig
    device: torch.device
    roster: Participants
    liars: Attack | None
    behaviours: Mapping[int, Behaviour]

    async def run(self, stop: Stop, observer: Observer) -> Result:
        """Every round, or those until `stop` is set."""
        try:
            corpus = await until_stopped(stop, off_loop(_open_corpus, self.settings))
            try:
                return await self._train(corpus, stop, observer)
            finally:
                await off_loop(corpus.close)
        except Stopped:
            return Scribe(observer, frozenset(), lambda: None).result(self.config, self.roster, finished=False)

    async def _train(self, corpus: Corpus, stop: Stop, observer: Observer) -> Result:
        check_sequence(self.settings, corpus.manifest)
        config, seed = self.config, self.config.run.seed
        with open_run_directory(self.settings, corpus.manifest, draws(seed)) as directory:
            data = self.settings.data
            directory.ledger.lease_slots(self.roster.hotkeys, 0, data.max_slots, data.lease)  # whoever else takes part
            training = await off_loop(WatchedTraining, self.settings, self.device)
            done = await off_loop(directory.resume, self.settings, training, observer.notice)
            report = await until_stopped(stop, off_loop(corpus.report, directory.key, config.run.eval_windows))
            miners = self._miners(corpus, training, directory.outbox)
            parts = (self.settings, directory, training, corpus, validator_signer(seed), miners, report, stop)
            ctx = await until_stopped(stop, off_loop(build_context, *parts))
            scribe = Scribe(observer, self.roster.keys(self.roster.hostile), Gauge(training, miners.crowd))
            axons = [seat.axon for seat in miners.seats()]
            scribe.started(self._shown(await off_loop(run_start, ctx, axons, done)))
            await off_loop(scribe.recall, directory.ledger)
            unfinished = await run_rounds(ctx, done, scribe)
            scribe.ranks = {line.hotkey: line for line in ranks(ctx.ranking.table)}
            if config.run.dir:
                await off_loop(directory.save_last, training, config.checkpoint.keep)
            scribe.finished(self._shown(run_end(ctx)))
        return scribe.result(config, self.roster, finished=unfinished is None)

    def _miners(self, corpus: Corpus, training: WatchedTraining, outbox: Outbox) -> SimulatedMiners:
        engine = Engine(self.config.model.shape, registry.build(self.config.gradient, self.device), self.device)
        honest, codecs = self.roster.honest, self.settings.codec
        behaviours = {place: self.behaviours[i] for place, i in enumerate(honest) if i in self.behaviours}
        crowd = HonestMiners(len(honest), engine, codec.get(codecs.state), codec.get(codecs.gradient), behaviours)
        return SimulatedMiners(
            roster=self.roster,
            crowd=crowd,
            engine=engine,
            corpus=corpus,
            rule=self.settings.aggregation.rule,
            header_limit=self.settings.limits.header_bytes,
            seed=self.config.run.seed,
            liars=self.liars,
            aggregate=lambda: training.formed,
            outbox=outbox,
        )

    def _shown(self, event: E) -> E:
        """The event without the path of a run directory that nobody will find."""
        return event if self.config.run.dir else msgspec.structs.replace(event, run_dir="a temporary folder")


def _liars(config: SimulationConfig, attack: Callable[[], Attack] | None) -> Attack | None:
    if attack is not None:
        return attack()
    return None if config.attack in (NONE, ABSENT) else build_attack(config.attack)


@contextmanager
def _folder(config: SimulationConfig) -> Iterator[Path]:
    """A run directory: the one asked for, or one that goes when the simulation ends."""
    if not config.run.dir:
        with TemporaryDirectory(prefix="fedgpt2-simulate-") as name:
            yield Path(name)
        return
    folder = path_of("--run.dir", config.run.dir)
    with disk_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not _goes_on(folder, config):
            raise UsageError(
                f"--run.dir {folder}: not empty, and no simulation of --run.seed {config.run.seed} that could go on; "
                "choose a new folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _goes_on(folder: Path, config: SimulationConfig) -> bool:
    """Whether the folder holds a simulation of this seed: it has the name that only such a one draws.

    A real run, whose name and key are secret draws, is never gone on with.
    """
    draw = draws(config.run.seed)
    _key, name = draw(32), draw(32).hex()  # in the order of a new run directory
    try:
        facts = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("run_id") == name


def _settings(config: SimulationConfig, folder: Path) -> ValidatorConfig:
    """The validator's settings: a slot for every miner, and no checkpoint where nobody would find it."""
    shared = {field.name for field in fields(ValidatorConfig)} & {field.name for field in fields(SimulationConfig)}
    return replace(
        ValidatorConfig(**{name: getattr(config, name) for name in shared}),
        data=replace(config.data, max_slots=max(config.data.max_slots, config.miners)),
        checkpoint=config.checkpoint if config.run.dir else Checkpoint(every=_NEVER),
        run=replace(config.run, dir=str(folder)),
    )


def _open_corpus(settings: ValidatorConfig) -> Corpus:
    data = settings.data
    source = _enough_pages(open_source(data), data.max_slots * data.max_pages)
    manifest = build(source, data, data.seq_len or settings.model.shape.block_size, settings.run.seed)
    return Corpus(source, manifest, open_store(data, source))


def _enough_pages(source: PageSource, pages: int) -> PageSource:
    """The embedded corpus cut into smaller pages, if there would be too few for so many miners; others as they are."""
    while isinstance(source, SampleSource) and source.pools[Pool.ASSIGN] < pages and source.page_documents > 1:
        source = replace(source, page_documents=source.page_documents // 2)
    return source
