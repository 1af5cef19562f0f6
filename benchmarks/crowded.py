"""Measure a gradient on cores that another miner uses, and on idle cores.

    .venv/bin/python benchmarks/crowded.py [--preset nano] [--gradients 4] [--repeats 5] [--json]

`beside` is two miners' gradients at once, each with a thread a core, as on a laptop with two miners; `alone` is one.
`.spinning` is the same with OpenMP's default spinning, without `fedgpt2.cli.process`. Seconds until all are finished.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from fedgpt2.cli.bench.report import Row, interleave, report
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.cli.process import SPIN_COUNT, limit_spinning
from fedgpt2.config import PRESETS

_MODULE = "fedgpt2.cli.bench.compute_worker"
_WINDOWS, _LENGTH = 8, 128


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--gradients", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    limit_spinning()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        path = str(_windows(Path(folder), PRESETS[arguments.preset].vocab_size))
        pairs = {
            suffix: [
                stack.enter_context(Worker.start("miner", _MODULE, "fedgpt2", arguments.preset, unset=unset))
                for _ in range(2)
            ]
            for suffix, unset in (("", ()), (".spinning", (SPIN_COUNT,)))
        }
        turns: dict[str, Callable[[], None]] = {}
        for suffix, pair in pairs.items():
            compute = partial(_compute, pool, path=path, times=arguments.gradients)
            turns |= {f"alone{suffix}": partial(compute, pair[:1]), f"beside{suffix}": partial(compute, pair)}
        seconds = interleave(turns, arguments.repeats)
        peak = float(pairs[""][0]("peak")["peak_mb"])
    rows = [Row(name, times, peak, {"gradients": float(arguments.gradients)}) for name, times in seconds.items()]
    note = f"{arguments.preset}, {arguments.gradients} gradients a miner of {_WINDOWS} windows of {_LENGTH} tokens"
    report("crowded", rows, as_json=arguments.json, notes=[note])
    return 0


def _windows(folder: Path, vocabulary: int) -> Path:
    path = folder / "windows.npy"
    np.save(path, np.random.default_rng(0).integers(0, vocabulary, (_WINDOWS, _LENGTH + 1), np.uint16))
    return path


def _compute(pool: ThreadPoolExecutor, workers: list[Worker], *, path: str, times: int) -> None:
    def gradients(worker: Worker) -> None:
        for _ in range(times):
            worker("gradient", path=path)

    list(pool.map(gradients, workers))


if __name__ == "__main__":
    sys.exit(main())
