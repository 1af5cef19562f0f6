"""The candidates of `fedgpt2 bench aggregation`, of one library, in a process of their own.

    python -m fedgpt2.cli.bench.aggregation_worker fedgpt2|byzfl FOLDER N D

The first d values of each of n files of fp32 are the contributions. Ours stay in the files, mapped; byzfl's rules are
given them as one matrix in memory, which is what they work on. What a validator has anyway is not timed: the norms,
which admission computes, and the buffer for the result.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgpt2.aggregation.combine import byzantine
from fedgpt2.aggregation.gram import norm
from fedgpt2.aggregation.registry import RULES
from fedgpt2.cli.bench.byzfl_rules import byzfl_rules
from fedgpt2.cli.bench.worker import peak_mb, release, serve
from fedgpt2.model.hardware import prepare, set_threads

__all__ = ["fedgpt2_candidates", "main", "peers"]

Candidate = Callable[[], object]


def fedgpt2_candidates(rows: list[Tensor]) -> Mapping[str, Candidate]:
    """Ours: reading everything once, and every rule."""
    norms = [norm(row) for row in rows]
    out = torch.zeros_like(rows[0])
    f = byzantine(len(rows), 0)
    candidates: dict[str, Candidate] = {"read": lambda: [float(row.sum()) for row in rows]}
    for name in RULES.names:
        candidates[name] = partial(RULES[name], rows, norms, f, out)
    return candidates


def peers(rows: list[Tensor]) -> Mapping[str, Candidate]:
    """byzfl's, on a matrix that they may overwrite: what they clip stays clipped, and costs no less the next time."""
    matrix = torch.stack(rows)
    rules = byzfl_rules(byzantine(len(rows), 0), clip=float(np.median([norm(row) for row in rows])))
    return {name: partial(rule, matrix) for name, rule in rules.items()}


def main(library: str, folder: str, n: str, d: str) -> None:
    """Serve until the bench closes the pipe."""
    if library == "byzfl":
        set_threads(0)
    else:
        prepare("cpu")
    release()
    base = _resident_mb()
    mapped = [np.memmap(Path(folder) / f"{i}.bin", np.float32, "c", shape=(int(d),)) for i in range(int(n))]
    rows = [torch.from_numpy(array) for array in mapped]
    candidates = peers(rows) if library == "byzfl" else fedgpt2_candidates(rows)

    def run(name: str) -> dict[str, float]:
        release()
        _forget_peak()
        start = time.perf_counter()
        candidates[name]()
        return {"seconds": time.perf_counter() - start, "peak_mb": _peak_mb(), "base_mb": base}

    serve({"run": run})


def _forget_peak() -> None:
    """From here on the kernel's peak is that of now (Linux; elsewhere it stays that of the whole process)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak_mb() -> float:
    return _status("VmHWM") or peak_mb()


def _resident_mb() -> float:
    return _status("VmRSS") or peak_mb()


def _status(field: str) -> float:
    """A size of /proc/self/status in MB; 0 where there is none."""
    path = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1.024e-3 if found else 0.0


if __name__ == "__main__":
    main(*sys.argv[1:])
