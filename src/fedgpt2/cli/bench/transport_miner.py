"""A miner of `bench transport`: the miner program as it is, with a strategy that has its gradient already.

python -m fedgpt2.cli.bench.transport_miner FOLDER SEED
"""

import asyncio
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedgpt2.cli.bench.async_worker import MEMORY, serve_async
from fedgpt2.config import PRESETS, Axon, DataSource, MinerConfig, Wallet
from fedgpt2.data.pages import Pool
from fedgpt2.data.sources import open_source
from fedgpt2.data.tokens import TokenCache
from fedgpt2.event_loop import Stop, run
from fedgpt2.gradient.strategy import Result
from fedgpt2.identity.signing import Signer
from fedgpt2.identity.wallet import open_hotkey
from fedgpt2.miner.job import MinerContext
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.packer import HonestEncoder
from fedgpt2.miner.program import serve
from fedgpt2.miner.work import MinerCorpus, Trainer
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.hardware import prepare
from fedgpt2.model.state import FlatState

__all__ = ["Resting", "main"]

_SCALE = 1e-3  # of the gradient's values: 124M of them have norm 11


class Resting:
    """A strategy that computes nothing: its gradient stands in the buffer from the first order on."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._filled: FlatState | None = None

    def __call__(self, model: GPT2, windows: NDArray[np.integer], *, out: FlatState, stop: threading.Event) -> Result:
        """As `Strategy` says, but for random numbers, drawn once for each buffer."""
        if self._filled is not out:
            out.flat.normal_(0.0, _SCALE, generator=self._generator)
            self._filled = out
        return Result(0.0, windows.shape[0] * (windows.shape[1] - 1))


def main(argv: Sequence[str]) -> int:
    """Serve until standard input ends."""
    folder, seed = argv
    return run(lambda stop: _serve(Path(folder), int(seed), stop))


async def _serve(folder: Path, seed: int, stop: Stop) -> int:
    wallet = Wallet("miners", f"M{seed}", str(folder / "wallets"))
    config = MinerConfig(wallet=wallet, axon=Axon(port=0), data=DataSource(source="sample"))
    workshop = Trainer(prepare("cpu"), Resting(seed))
    signer = Signer(open_hotkey(wallet, create=True, notice=lambda _: None))
    source = open_source(config.data)
    TokenCache(source).get(Pool.ASSIGN, 0)  # what tokenizer and model code hold is there before memory is looked at
    GPT2(PRESETS["tiny"])
    tools = MinerContext(signer, MinerCorpus(source), workshop, HonestEncoder())
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def hear(line: str) -> None:
        if found := re.match(r"listening on \S+:(\d+)", line):
            listening.set_result(int(found[1]))

    miner = asyncio.create_task(serve(config, tools, OrderJournal(folder / f"miner-{seed}"), stop, hear))
    port = await listening
    await serve_async({"port": lambda: {"port": port}, **MEMORY})
    stop.set()
    return await miner


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
