"""`fedgpt2 bench aggregation`: 16 contributions into one, by every rule, against a mean, a read, and byzfl.

The contributions lie in files: 16 of the preset's size, a common signal and noise three times as long, a quarter of
them with the signal's sign flipped. `read` sums up every contribution, once; `mean` is the mean by tokens; the others
are the pipelines by name. byzfl needs an n x d matrix and more, so it is measured on the first 10 million values,
beside our rules on the same ones (`default@10M`), if it is installed; nothing is scaled up.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from fedgpt2.aggregation.combine import byzantine
from fedgpt2.aggregation.registry import RULES
from fedgpt2.cli.bench.byzfl_rules import VERSION, installed
from fedgpt2.cli.bench.report import Row, interleave, ratios, report
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.cli.process import SPIN_COUNT
from fedgpt2.config import Model
from fedgpt2.errors import DiskFullError

__all__ = ["run"]

_MODULE = "fedgpt2.cli.bench.aggregation_worker"
_N = 16
_NOISE = 3.0
_CHUNK = 1 << 22  # values of a row written at once
_PEER_D = 10_000_000
_OURS = ("read", *RULES.names)
_PEERS = ("krum", "geometric_median", "trimmed_mean", "nnm_geometric_median", "nnm_trimmed_mean")
_BESIDE = ("mean", "default", "krum", "geometric_median", "trimmed_mean", "nnm_trimmed_mean")
_TARGETS = {"default/mean": 4.0, "mean/read": 2.0, "default/byzfl.nnm_geometric_median": 0.1}
_MEMORY = 1.2


def run(preset: str, repeats: int, as_json: bool) -> int:
    """Measure, print, return the exit code. Raises UsageError for an unknown preset, DiskFullError."""
    d = sum(prod(shape) for shape in Model(preset).shape.schema().values())
    small = min(d, _peer_d())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _need(folder, 4 * _N * d)
        _spool(folder, d)
        rows: list[Row] = []
        if small < d and installed():  # first: what byzfl takes would push the large ones out of memory
            rows = _measure(folder, small, repeats, _BESIDE, _PEERS, _size(small))
        rows = _measure(folder, d, repeats, _OURS, _PEERS if small == d and installed() else (), "") + rows
    report("aggregation", rows, as_json=as_json, notes=_notes(rows, d))
    return 0


def _measure(folder: Path, d: int, repeats: int, ours: Sequence[str], peers: Sequence[str], group: str) -> list[Row]:
    """Rows of our candidates and of byzfl's, in turns, on the first d values of each contribution."""
    answers: dict[str, list[Mapping[str, float]]] = {}

    def turn(worker: Worker, rule: str, name: str) -> float:
        answer = worker("run", name=rule)
        answers.setdefault(name, []).append(answer)
        return float(answer["seconds"])

    suffix = f"@{group}" if group else ""
    with contextlib.ExitStack() as stack:
        where = (str(folder), str(_N), str(d))
        worker = stack.enter_context(Worker.start("fedgpt2", _MODULE, "fedgpt2", *where))
        turns = {rule + suffix: partial(turn, worker, rule, rule + suffix) for rule in ours}
        if peers:
            other = stack.enter_context(Worker.start("byzfl", _MODULE, "byzfl", *where, unset=(SPIN_COUNT,)))
            turns |= {f"byzfl.{rule}": partial(turn, other, rule, f"byzfl.{rule}") for rule in peers}
        seconds = interleave(turns, repeats)
    return [_row(name, times, answers[name], d, group) for name, times in seconds.items()]


def _row(name: str, seconds: Sequence[float], answers: Sequence[Mapping[str, float]], d: int, group: str) -> Row:
    peak = max(answer["peak_mb"] for answer in answers)
    memory = (peak - answers[0]["base_mb"]) / (4e-6 * _N * d)
    return Row(name, seconds, peak, {"d": d, "memory_per_contributions": round(memory, 3)}, group)


def _size(d: int) -> str:
    return f"{d / 1e6:.3g}M"


def _notes(rows: Sequence[Row], d: int) -> list[str]:
    """What was measured, and the targets and what came of them."""
    times = ratios(rows)
    memory = next(row for row in rows if row.name == "default").extra["memory_per_contributions"]
    lines = [f"{_N} contributions of {d} values, {byzantine(_N, 0)} of them hostile: {4e-9 * _N * d:.2f} GB in files"]
    lines += [f"{pair} {times[pair]} (target {target})" for pair, target in _TARGETS.items() if pair in times]
    lines.append(f"default takes {memory} of the memory of the contributions (target {_MEMORY})")
    if not any(row.name.startswith("byzfl") for row in rows):
        lines.append(f"byzfl is not installed: python -m pip install --no-deps byzfl=={VERSION}")
    return lines


def _need(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.05 * size:
        raise DiskFullError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, the contributions take {size / 1e9:.1f}; "
            "set TMPDIR to a folder with more, or take a smaller --preset"
        )


def _peer_d() -> int:
    """Values a row for which byzfl has memory: its mixing holds n x (n - f) x d of them, and then some."""
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", path.read_text()) if path.exists() else None
    available = 1024 * int(found[1]) if found else 0
    return min(_PEER_D, available // (6 * _N * (_N - byzantine(_N, 0)))) if available else _PEER_D


def _spool(folder: Path, d: int) -> None:
    """Write the contributions: 0.bin … 15.bin, fp32."""
    random = np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{i}.bin").open("wb")) for i in range(_N)]
        for start in range(0, d, _CHUNK):
            size = min(_CHUNK, d - start)
            signal = random.standard_normal(size, dtype=np.float32)
            for i, file in enumerate(files):
                noise = random.standard_normal(size, dtype=np.float32)
                noise *= np.float32(_NOISE)
                noise += -signal if i < byzantine(_N, 0) else signal
                file.write(noise.data)
