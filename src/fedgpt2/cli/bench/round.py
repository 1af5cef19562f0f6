"""`fedgpt2 bench round`: whole rounds by real processes, against nothing but their computing.

`fedgpt2` is a validator and two miners on loopback, one thread a miner, with everything a round has: orders,
signatures, digests, transfers, admission, the validator's own loss, the step, evaluation, checkpoint. `compute` is two
processes of one thread that compute the gradients of the same windows at the same time. They take turns: a validator
starts, does some rounds and ends; then the same rounds are computed alone.
"""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

from fedgpt2.cli.bench.federation import Federation, Round, federation
from fedgpt2.cli.bench.report import Row, ratios, report
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.config import Data, Model, Run
from fedgpt2.data.corpus import Corpus
from fedgpt2.types import ModelShape

__all__ = ["run"]

_MINERS = 2
_TOKENS = 2048  # a miner and round
_ROUNDS = 3  # of a turn, after one that is not counted: a fresh validator fills its caches
_LONGEST = 256  # tokens of a window


def run(preset: str, repeats: int, as_json: bool) -> int:
    """Measure, print, return the exit code. Raises UsageError for an unknown preset."""
    shape = Model(preset).shape
    data = _data(shape)
    corpus = Corpus.open(data, shape.block_size, Run().seed)
    flags = (
        *("--model.preset", preset, "--data.windows", str(data.windows), "--data.seq_len", str(data.seq_len)),
        *("--data.span", str(data.span), "--optimizer.horizon", str((_ROUNDS + 1) * repeats)),
    )
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        crowd = stack.enter_context(federation(folder, _MINERS, "--run.threads", "1"))
        workers = [
            stack.enter_context(Worker.start(f"compute {slot}", "fedgpt2.cli.bench.round_worker", preset, "1"))
            for slot in range(_MINERS)
        ]
        rounds, alone, peak = _turns(crowd, workers, corpus, data.windows, repeats, flags)
        rows = _rows(rounds, alone, peak, crowd.miner_peak_mb(), max(float(w("peak")["peak_mb"]) for w in workers))
    report("round", rows, as_json=as_json, notes=_notes(rows, rounds, data))
    return 0


def _data(shape: ModelShape) -> Data:
    length = min(_LONGEST, shape.block_size)
    return Data(source="sample", seq_len=length, windows=_TOKENS // length, span=1)


def _turns(
    crowd: Federation, workers: Sequence[Worker], corpus: Corpus, windows: int, repeats: int, flags: Sequence[str]
) -> tuple[list[Round], list[float], float]:
    """Counted rounds, seconds of computing each alone, and the validator's peak memory (MB)."""
    rounds: list[Round] = []
    alone: list[float] = []
    peak = 0.0
    for turn in range(1, repeats + 1):
        stay = crowd.train("bench", *flags, "--rounds", str(turn * (_ROUNDS + 1)))
        peak = max(peak, stay.peak_mb)
        rounds += stay.rounds[-_ROUNDS:]
        spent = [_compute(workers, corpus, windows, row["round"], crowd.folder) for row in stay.rounds[-_ROUNDS - 1 :]]
        alone += spent[1:]
    return rounds, alone, peak


def _compute(workers: Sequence[Worker], corpus: Corpus, windows: int, number: int, folder: Path) -> float:
    """Seconds in which all workers together compute what the miners computed in a round."""
    paths = [folder / f"windows-{slot}.npy" for slot in range(len(workers))]
    for slot, path in enumerate(paths):
        np.save(path, corpus.windows(corpus.assign(number, slot, windows)))
    with ThreadPoolExecutor(len(workers)) as pool:
        start = time.perf_counter()
        list(pool.map(lambda worker, path: worker("gradient", path=str(path)), workers, paths))
        return time.perf_counter() - start


def _rows(rounds: Sequence[Round], alone: Sequence[float], validator: float, miner: float, worker: float) -> list[Row]:
    phases = [phase for phase in rounds[0]["seconds"] if phase != "total"]
    extra: dict[str, float | str] = {
        **{f"{phase}_s": round(median(row["seconds"].get(phase, 0.0) for row in rounds), 4) for phase in phases},
        "validator_peak_mb": round(validator, 1),
        "miner_peak_mb": round(miner, 1),
    }
    ours = Row("fedgpt2", [row["seconds"]["total"] for row in rounds], max(validator, miner), extra)
    return [ours, Row("compute", alone, worker)]


def _notes(rows: Sequence[Row], rounds: Sequence[Round], data: Data) -> list[str]:
    bare = median(row["seconds"]["total"] - row["seconds"].get("checkpoint", 0.0) for row in rounds)
    rows = [*rows, Row("without checkpoint", [bare] * len(rounds), 0.0)]
    times = ratios(rows)
    return [
        f"{_MINERS} miners of one thread, {data.windows} windows of {data.seq_len} tokens each; {len(rounds)} rounds",
        f"a round takes {times['fedgpt2/compute']:.2f}x its computing alone, "
        f"{times['without checkpoint/compute']:.2f}x without its checkpoint",
    ]
