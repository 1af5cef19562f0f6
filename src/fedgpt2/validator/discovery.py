"""Finds the miners at the addresses of `--axons`: who answers there, by which key, and whether the run can use it."""

import asyncio
from collections.abc import Callable, Collection, Sequence

import aiohttp

from fedgpt2.config import Axons, Limits
from fedgpt2.errors import PeerError
from fedgpt2.event_loop import off_loop
from fedgpt2.identity.pins import KeyBook
from fedgpt2.identity.signing import Signer
from fedgpt2.link.address import Address
from fedgpt2.link.base import ConnectedMiner
from fedgpt2.link.client import AxonClient
from fedgpt2.link.dial import DialLink
from fedgpt2.protocol.messages import Info
from fedgpt2.types import Hotkey
from fedgpt2.validator.collector import Collector

__all__ = ["Discovery"]

_PROBE_SECONDS = 1.0  # between two attempts to reach an axon that does not answer


class Discovery:
    """Connects each axon's miner to the collector, and looks for it again whenever its link is lost."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        signer: Signer,
        axons: Axons,
        addresses: Sequence[Address],
        limits: Limits,
        book: KeyBook,
        collector: Collector,
        *,
        record: Callable[[str, Hotkey], None],
        check_miner: Callable[[Info, Collection[Hotkey]], str | None],
    ) -> None:
        """`record` keeps an axon's key; `check_miner`: info, hotkeys connected -> why the run cannot use the miner.

        Both may wait for a disk: they run off the event loop.
        """
        self._axons = axons
        self._limits = limits
        self._book = book
        self._collector = collector
        self._record = record
        self._check_miner = check_miner
        self._addresses = {str(address): address for address in addresses}
        self._clients = {axon: AxonClient(session, signer, at, limits) for axon, at in self._addresses.items()}
        self._connected: set[str] = set()
        self._one_at_a_time = asyncio.Lock()  # a key or slot goes to the first that asks

    def start(self) -> None:
        """Begin; it ends with the collector."""
        for axon in self._addresses:
            self._collector.expect(axon)
        for axon in self._addresses:
            self._collector.spawn(self._watch(axon))

    async def _watch(self, axon: str) -> None:
        while True:
            if axon not in self._connected:
                await self._try(axon)
            await asyncio.sleep(_PROBE_SECONDS)

    async def _try(self, axon: str) -> None:
        """Connect the miner at `axon`, or say why not."""
        try:
            info = await self._clients[axon].introduce()
            async with self._one_at_a_time:
                why = await self._admit(axon, info)
        except PeerError as error:
            why = str(error)
        if why is not None:
            self._collector.disconnect(axon, why)

    async def _admit(self, axon: str, info: Info) -> str | None:
        """Check key and capabilities, and connect; else why not. Raises PeerError for a key that is not accepted."""
        hotkey = Hotkey(info.hotkey)
        change = self._book.check(axon, self._addresses[axon].hotkey, hotkey, self._axons.accept_new)
        if change is not None:
            await off_loop(self._record, axon, hotkey)
        connected = [miner.hotkey for miner in self._collector.miners]
        why = await off_loop(self._check_miner, info, connected)
        if why is not None:
            self._book.release(axon)
            return why
        self._connected.add(axon)
        miner = ConnectedMiner(hotkey, axon)
        self._collector.connect(DialLink(self._clients[axon], miner, self._limits, lambda why: self._lost(axon, why)))
        return None

    def _lost(self, axon: str, why: str) -> None:
        self._connected.discard(axon)
        self._book.release(axon)
        self._collector.disconnect(axon, why)
