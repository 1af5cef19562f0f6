"""The validator of `bench transport`: the program's own parts, put together without a run directory.

    python -m fedgpt2.cli.bench.transport_validator PRESET FOLDER PORT...

A trip is steps 1 to 4 of `validator.round`: digest the state, write and sign the orders, exchange. After it,
unmeasured, the gradients are admitted and a step is taken, so that each trip has another state to send.
"""

import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fedgpt2 import codec
from fedgpt2.aggregation import token_weights, weighted_mean
from fedgpt2.cli.bench.async_worker import MEMORY, memory, serve_async
from fedgpt2.config import Axons, Data, Model, Ranking, ValidatorConfig, Wallet
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import FedGPT2Error
from fedgpt2.event_loop import off_loop, run
from fedgpt2.identity.pins import KeyBook
from fedgpt2.identity.signing import Signer
from fedgpt2.identity.wallet import open_hotkey
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.link.address import parse
from fedgpt2.link.base import OrderResult
from fedgpt2.link.blobs import Blob
from fedgpt2.link.client import open_session
from fedgpt2.model.hardware import prepare
from fedgpt2.protocol.messages import MANIFEST_CODEC
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Digest
from fedgpt2.validator.admission import admit
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.discovery import Discovery
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.training import Training

__all__ = ["main"]

_RUN_ID = "0" * 64
_ROUND = 1  # always this one, under new attempts: its few windows are tokenised once
_DATA = Data(source="sample", windows=1, seq_len=64, span=4)


def main(argv: Sequence[str]) -> int:
    """Serve until standard input ends."""
    preset, folder, *ports = argv
    return run(lambda _: _serve(preset, Path(folder), ports))


async def _serve(preset: str, folder: Path, ports: list[str]) -> int:
    config = ValidatorConfig(
        wallet=Wallet("validator", "default", str(folder / "wallets")),
        axons=Axons(addresses=tuple(ports)),
        model=Model(preset),
        data=_DATA,
        ranking=Ranking(rule="off"),
    )
    signer = Signer(open_hotkey(config.wallet, create=True, notice=lambda _: None))
    training = Training(config, prepare("cpu"))
    corpus = Corpus.open(config.data, config.model.shape.block_size, config.run.seed)
    async with _collector(config, signer) as collector:
        trips = _Trips(config, training, _orders(config, signer, corpus), collector)
        await collector.present(len(ports))
        built = memory()
        await serve_async({"trip": trips.trip, "built": lambda: built, **MEMORY})
    return 0


@asynccontextmanager
async def _collector(config: ValidatorConfig, signer: Signer) -> AsyncIterator[Collector]:
    collector = Collector(
        signer,
        Outbox(),
        MemoryPool().lease,
        lambda line: print(line, file=sys.stderr),
        wait_seconds=config.axons.wait_seconds,
    )
    async with open_session(config.limits) as session:
        discovery = Discovery(
            session,
            signer,
            config.axons,
            [parse(text) for text in config.axons.addresses],
            config.limits,
            KeyBook({}),
            collector,
            record=lambda _axon, _hotkey: None,
            check_miner=lambda _info, _connected: None,
        )
        discovery.start()
        try:
            yield collector
        finally:
            await collector.close()


def _orders(config: ValidatorConfig, signer: Signer, corpus: Corpus) -> OrderBook:
    manifest = corpus.manifest.to_bytes()
    return OrderBook(
        signer=signer,
        run_id=_RUN_ID,
        model=config.model.shape,
        corpus=corpus,
        manifest=Blob.of(MANIFEST_CODEC, b"", memoryview(manifest)),
        answer_codec=codec.get(config.codec.gradient),
        windows=config.data.windows,
        budget_seconds=config.round.deadline,
        header_bytes=config.limits.header_bytes,
    )


class _Trips:
    """Trips of the state to the miners and of their gradients back."""

    def __init__(self, config: ValidatorConfig, training: Training, orders: OrderBook, collector: Collector) -> None:
        self._config = config
        self._training = training
        self._orders = orders
        self._collector = collector
        self._attempt = 0

    async def trip(self, miners: int) -> Mapping[str, float]:
        """One trip to the first `miners` miners. Raises FedGPT2Error if a gradient does not come back whole."""
        present = await self._collector.present(len(self._config.axons.addresses))
        chosen = [(miner, slot) for slot, miner in enumerate(present[:miners])]
        self._attempt += 1
        start = time.perf_counter()
        snapshot = await off_loop(self._training.snapshot)
        orders = await off_loop(self._orders.write, _ROUND, self._attempt, snapshot.model, snapshot.blob.ref, chosen)
        blobs = {Digest(blob.ref.digest): blob for blob in (snapshot.blob, self._orders.manifest)}
        results = await self._collector.collect(orders, blobs, deadline=self._config.round.deadline, quorum=len(orders))
        seconds = time.perf_counter() - start
        await off_loop(self._step, results)
        return {
            "seconds": seconds,
            "send": max(result.traffic.sent for result in results),
            "wait": max(result.traffic.described for result in results),
            "receive": max(result.traffic.received for result in results),
        }

    def _step(self, results: Sequence[OrderResult]) -> None:
        """A step against the gradients, which changes the weights."""
        verdicts = admit(results, self._config.limits, MemoryPool().lease)
        for verdict in verdicts:
            if verdict.failure is not None:
                raise FedGPT2Error(f"{verdict.result.issued.miner.axon}: {verdict.failure}")
        values = [verdict.values for verdict in verdicts if verdict.values is not None]
        weights = token_weights([verdict.result.issued.tokens for verdict in verdicts])
        self._training.aggregate(lambda out: weighted_mean(values, weights, out))
        self._training.step(self._training.rate(self._attempt, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
