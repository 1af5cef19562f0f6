"""`fedgpt2 miner` from settings to exit code: everything that can be wrong is found before the port opens."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fedgpt2.config import Axon as AxonSettings
from fedgpt2.config import DataSource, MinerConfig, path_of
from fedgpt2.data.pages import PageSource
from fedgpt2.data.sources import open_source, open_store
from fedgpt2.data.store import Store
from fedgpt2.event_loop import Stop, off_loop
from fedgpt2.gradient.registry import build
from fedgpt2.gradient.strategy import Strategy
from fedgpt2.identity.auth import Authenticator
from fedgpt2.identity.keys import parse_hotkey
from fedgpt2.identity.pins import is_loopback, require_validators
from fedgpt2.identity.signing import Signer
from fedgpt2.identity.wallet import open_hotkey
from fedgpt2.link.http_server import Server
from fedgpt2.miner.axon import Axon
from fedgpt2.miner.job import MinerContext
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.packer import AnswerEncoder, HonestEncoder
from fedgpt2.miner.service import Miner
from fedgpt2.miner.work import MinerCorpus, Trainer
from fedgpt2.model import hardware

__all__ = ["run_miner", "serve"]

T = TypeVar("T")


async def run_miner(
    config: MinerConfig,
    stop: Stop,
    say: Callable[[str], None],
    *,
    packer: AnswerEncoder | None = None,
    strategy: Strategy | None = None,
) -> int:
    """Serve until `stop`; returns the exit code. `packer` replaces how answers are made, `strategy` how gradients are.

    Raises, one line each and before anybody can connect: DeviceError, UsageError (pins, strategy, wallet),
    CorpusError, RunDirectoryError, PortInUseError; later DiskFullError.
    """
    device = hardware.prepare(config.device, config.run.threads)
    _check_pins(config.axon)
    _ = config.model.shape  # a name that is none is found now
    strategy = strategy or build(config.gradient, device)
    if config.gradient.precision == "bf16" and hardware.native_precision(device) != "bf16":
        say(f"{config.device} has no instructions for bf16: --gradient.precision fp32 is several times as fast")
    opened = await _unless_stopped(stop, off_loop(_open_text, config.data))
    if opened is None:
        return 0
    source, store = opened
    if source.credit:
        say(source.credit)
    signer = Signer(await off_loop(open_hotkey, config.wallet, create=is_loopback(config.axon.host), notice=say))
    tools = MinerContext(signer, MinerCorpus(source, store), Trainer(device, strategy), packer or HonestEncoder())
    return await serve(config, tools, await off_loop(_journal, config, signer), stop, say)


async def serve(
    config: MinerConfig, tools: MinerContext, journal: OrderJournal, stop: Stop, say: Callable[[str], None]
) -> int:
    """Listen and work until `stop`; closes `journal`. Raises PortInUseError, DiskFullError, RunDirectoryError."""
    miner = Miner(tools, journal, config.limits, say, config.model.shape)
    allowed = frozenset(config.axon.validators) or None
    authenticator = Authenticator(miner.hotkey, allowed=allowed, proxies=config.axon.proxies)
    axon = Axon(miner, tools.signer, authenticator, config.limits, say)
    server = Server(axon.app(), config.axon.host, config.axon.port)
    try:
        await server.start()
        say(f"listening on {config.axon.host}:{server.port} as {miner.hotkey}")
        await _until(stop, miner.failed)
    finally:
        await asyncio.gather(miner.close(), server.stop())
        await off_loop(journal.close)  # only now: until then requests in flight may use it
        await off_loop(tools.library.close)
    say("stopped")
    return 0


async def _until(stop: Stop, failed: "asyncio.Future[None]") -> None:
    """Return when `stop` is set; raise what `failed` gets."""
    waiting = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({waiting, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        waiting.cancel()


def _check_pins(axon: AxonSettings) -> None:
    require_validators(axon.host, axon.validators)
    for validator in axon.validators:
        parse_hotkey(validator)


def _journal(config: MinerConfig, signer: Signer) -> OrderJournal:
    """A folder of its own for each hotkey, so that miners of one machine share nothing."""
    return OrderJournal(path_of("--run.dir", config.run.dir) / signer.hotkey)


def _open_text(config: DataSource) -> tuple[PageSource, Store | None]:
    source = open_source(config)
    return source, open_store(config, source)


async def _unless_stopped(stop: Stop, work: Awaitable[T]) -> T | None:
    """Result of `work`, or None as soon as `stop` is set; `work` is then left to itself."""
    task, waiting = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        waiting.cancel()
        task.cancel()
