"""Memory of a validator by number of miners: the anonymous memory must not grow with them.

    .venv/bin/python benchmarks/validator_memory.py [--model nano] [--miners 2 32] [--codecs fp32 bf16] [--json]

The validator is the program as it is, over real sockets, its run directory in --folder (on a disk, not tmpfs). The
miners are the miner program too, all in one process, with gradients drawn once. RssAnon and RssFile of the validator
are sampled every 50 ms; a body is the model in fp32. Exits 1 when the largest number of miners takes more than 2 bodies
of anonymous memory more than the smallest.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from bittensor.sp_core import Keypair
from numpy.typing import NDArray

from fedgpt2 import codec
from fedgpt2.cli.bench.report import Row, report
from fedgpt2.config import PRESETS, Axon, Data, MinerConfig
from fedgpt2.data.sources import open_source
from fedgpt2.event_loop import Stop, run
from fedgpt2.gradient.strategy import Result
from fedgpt2.identity.signing import Signer
from fedgpt2.link.blobs import Blob
from fedgpt2.miner.job import MinerContext
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.orders import answer_codec
from fedgpt2.miner.packer import ComputeResult, describe
from fedgpt2.miner.program import serve
from fedgpt2.miner.work import MinerCorpus, Trainer
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Contribution, Order
from fedgpt2.storage.mapped import memory_backed
from fedgpt2.types import WorkId

_VALIDATOR = Path(__file__).resolve().parents[1] / "src" / "validator.py"
_SAMPLE_SECONDS = 0.05
_ALLOWED_BODIES = 2.0
_STEP = 1 << 10  # values between the starts of two miners' gradients in the drawn ones
_KINDS = ("RssAnon", "RssFile", "RssShmem")


def main() -> int:
    """Measure, print; or serve the miners, in the process started for that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--miners", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--codecs", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return run(lambda stop: _serve(given.serve, given.model, given.miners[0], stop))
    given.folder.mkdir(parents=True, exist_ok=True)
    if memory_backed(given.folder):
        raise SystemExit(f"{given.folder} is kept in memory: name a folder on a disk with --folder")
    rows = [_measure(given, name, count) for name in given.codecs for count in given.miners]
    more = [_more(rows, name) for name in given.codecs]
    notes = [f"{name}: {bodies:.2f} bodies more" for name, bodies in zip(given.codecs, more, strict=True)]
    report("validator-memory", rows, as_json=given.json, notes=[f"{given.model}, bodies of anonymous memory", *notes])
    return int(max(more) > _ALLOWED_BODIES)


def _more(rows: list[Row], name: str) -> float:
    bodies = [float(row.extra["anonymous_bodies"]) for row in rows if row.name.startswith(name)]
    return bodies[-1] - bodies[0]


def _measure(given: argparse.Namespace, name: str, miners: int) -> Row:
    """One run of the validator with so many miners."""
    with (
        tempfile.TemporaryDirectory(dir=given.folder, prefix="memory-") as folder,
        _miners(Path(folder), given.model, miners) as ports,
    ):
        command = [sys.executable, _VALIDATOR, "--device", "cpu", "--axons", *ports, "--rounds", str(given.rounds)]
        command += ["--model.preset", given.model, "--codec.state", name, "--codec.gradient", name]
        command += ["--data.source", "sample", "--data.max_slots", str(miners), "--data.windows", "1"]
        command += ["--data.span", "4", "--run.dir", f"{folder}/run", "--wallet.path", f"{folder}/wallets"]
        began = time.monotonic()
        peaks = _peaks(command)
        seconds = time.monotonic() - began
    body = codec.get("fp32").data_bytes(PRESETS[given.model].schema())
    extra = {f"{kind}_mb": round(peaks[kind] / 1e6, 1) for kind in _KINDS}
    bodies = {"anonymous_bodies": round(peaks["RssAnon"] / body, 2), "file_bodies": round(peaks["RssFile"] / body, 2)}
    return Row(f"{name}-{miners}", [seconds], peaks["RssAnon"] / 1e6, {**bodies, **extra}, group=f"{name}-{miners}")


def _peaks(command: list[str | Path]) -> dict[str, int]:
    """Largest resident bytes of each kind while a command runs. Raises RuntimeError if it fails."""
    peaks = dict.fromkeys(_KINDS, 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            for line in status:
                kind, _, value = line.partition(":")
                if kind in peaks:
                    peaks[kind] = max(peaks[kind], int(value.split()[0]) << 10)
            time.sleep(_SAMPLE_SECONDS)
        said = process.stdout.read().decode() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"the validator ended with {process.returncode}: {said}")
    print(said, file=sys.stderr)
    return peaks


@contextmanager
def _miners(folder: Path, model: str, count: int) -> Iterator[list[str]]:
    """Start the miners in a process of their own; gives their ports."""
    command = [sys.executable, __file__, "--serve", str(folder / "miners"), "--model", model, "--miners", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() if process.stdout else "" for _ in range(count)]
            yield [line.strip() for line in lines]
        finally:
            process.terminate()


class _Prepared:
    """A strategy and encoder without work: each miner's gradient is another part of the same random numbers."""

    def __init__(self, drawn: torch.Tensor, start: int) -> None:
        self._drawn = drawn
        self._start = start

    def __call__(self, model: GPT2, windows: NDArray[np.integer], *, out: FlatState, stop: threading.Event) -> Result:
        """As `Strategy` says, but nothing is written."""
        return Result(0.0, windows.shape[0] * (windows.shape[1] - 1))

    def pack(
        self, order: Order, work_id: WorkId, result: ComputeResult, gradient: FlatState
    ) -> tuple[Contribution, Blob]:
        """As `AnswerEncoder` says."""
        which = answer_codec(order, gradient.schema)
        values = self._drawn[self._start : self._start + gradient.flat.numel()]
        blob = Blob.of(which.name, which.header(gradient.schema), which.encode(values))
        return describe(order, work_id, result, blob.ref), blob


async def _serve(folder: Path, model: str, count: int, stop: Stop) -> int:
    values = codec.get("fp32").data_bytes(PRESETS[model].schema()) // 4
    drawn = torch.randn(values + count * _STEP, generator=torch.Generator().manual_seed(0)).mul_(1e-3)
    corpus = MinerCorpus(open_source(Data(source="sample")))
    await asyncio.gather(*(_one(folder, number, drawn, corpus, stop) for number in range(count)))
    return 0


async def _one(folder: Path, number: int, drawn: torch.Tensor, corpus: MinerCorpus, stop: Stop) -> int:
    signer = Signer(Keypair.create_from_seed(number.to_bytes(32, "big")))
    prepared = _Prepared(drawn, number * _STEP)
    tools = MinerContext(signer, corpus, Trainer(torch.device("cpu"), prepared), prepared)
    journal = OrderJournal(folder / str(number))

    def say(line: str) -> None:
        if line.startswith("listening on"):
            print(line.split()[2].rpartition(":")[2], flush=True)

    return await serve(MinerConfig(axon=Axon(port=0)), tools, journal, stop, say)


if __name__ == "__main__":
    sys.exit(main())
