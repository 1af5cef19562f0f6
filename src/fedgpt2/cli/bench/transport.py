"""`fedgpt2 bench transport`: the state to miners and their gradients back over loopback, without computing.

Three candidates take turns, each with a validator and two miners in processes of their own: `fedgpt2` is the real
validator and the real miner with signatures and digests on; `aiohttp` is the round trip one would first write with
aiohttp and safetensors; `tcp` is the same bytes over bare sockets. `memcpy` is the least that loopback TCP must do.
A name with `.2` is the same with two miners at once.
"""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from fedgpt2.cli.bench.report import Row, interleave, ratios, report
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.config import Model
from fedgpt2.errors import SetupError, UsageError
from fedgpt2.protocol.tensors import data_bytes, write_header
from fedgpt2.types import Schema

__all__ = ["Candidate", "ours", "run"]

_MODULES = "fedgpt2.cli.bench.transport_"
_PROCESS = 300_000_000  # bytes a process takes before it holds a tensor
_TARGETS = {"aiohttp": 0.7, "tcp": 3.0}


@dataclass(frozen=True)
class Candidate:
    """One way of doing it: the two sides' processes."""

    name: str
    validator: Worker
    miners: Sequence[Worker]

    def trip(self, miners: int, peaks: dict[str, tuple[float, float]]) -> float:
        """Seconds of one trip to so many miners; the peaks of both sides (MB) go into `peaks` under the row's name."""
        sides = (self.validator, *self.miners[:miners])
        for worker in sides:
            worker("forget_peak")
        seconds = float(self.validator("trip", miners=miners)["seconds"])
        validator, *others = (float(worker("memory")["peak_mb"]) for worker in sides)
        name = row_name(self.name, miners)
        before = peaks.get(name, (0.0, 0.0))
        peaks[name] = (max(before[0], validator), max(before[1], *others))
        return seconds


def run(preset: str, repeats: int, as_json: bool, miners: tuple[int, ...] = (1, 2)) -> int:
    """Measure, print, return the exit code. Raises UsageError for an unknown preset or without safetensors."""
    schema = Model(preset).shape.schema()
    if importlib.util.find_spec("safetensors") is None:
        raise UsageError("bench transport measures against safetensors: python -m pip install safetensors")
    body = len(write_header(schema, "F32")) + data_bytes(schema, "F32")
    _check_memory(preset, body, max(miners))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        most = max(miners)
        candidates = [
            stack.enter_context(ours(preset, folder, most)),
            stack.enter_context(_baseline("aiohttp", most, miner=[preset], validator=[preset])),
            stack.enter_context(_baseline("tcp", most, miner=[str(body)], validator=[str(body)])),
        ]
        limits = _limits(candidates[0], body)
        peaks: dict[str, tuple[float, float]] = {}
        turns: dict[str, Callable[[], float | None]] = {
            row_name(candidate.name, n): partial(candidate.trip, n, peaks) for candidate in candidates for n in miners
        }
        turns |= {row_name("memcpy", n): partial(_copy, candidates[-1].validator, n) for n in miners}
        rows = _rows(interleave(turns, repeats), peaks, limits)
    report("transport", rows, as_json=as_json, notes=_notes(rows, schema, body, miners))
    return 0


def _check_memory(preset: str, body: int, miners: int) -> None:
    """All candidates are in memory at once; a machine that runs out of it ends whichever process it likes."""
    needed = (12 + 12 * miners) * body + (3 + 2 * miners) * _PROCESS
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    if free < needed:
        raise SetupError(
            f"bench transport --preset {preset} needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free; "
            "try a smaller preset"
        )


def row_name(candidate: str, miners: int) -> str:
    """`fedgpt2` with one miner, `fedgpt2.2` with two."""
    return candidate if miners == 1 else f"{candidate}.{miners}"


@contextlib.contextmanager
def ours(preset: str, folder: str, miners: int) -> Iterator[Candidate]:
    """Our validator and miners; wallets and journals in `folder`."""
    with contextlib.ExitStack() as stack:
        serving = [
            stack.enter_context(Worker.start(f"fedgpt2 miner {seed}", f"{_MODULES}miner", folder, str(seed)))
            for seed in range(1, miners + 1)
        ]
        ports = [str(miner("port")["port"]) for miner in serving]
        validator = Worker.start("fedgpt2 validator", f"{_MODULES}validator", preset, folder, *ports)
        yield Candidate("fedgpt2", stack.enter_context(validator), serving)


@contextlib.contextmanager
def _baseline(name: str, miners: int, *, miner: Sequence[str], validator: Sequence[str]) -> Iterator[Candidate]:
    with contextlib.ExitStack() as stack:
        serving = [
            stack.enter_context(Worker.start(f"{name} miner {seed}", f"{_MODULES}{name}", "miner", *miner, str(seed)))
            for seed in range(1, miners + 1)
        ]
        ports = [str(worker("port")["port"]) for worker in serving]
        worker = Worker.start(f"{name} validator", f"{_MODULES}{name}", "validator", *validator, *ports)
        yield Candidate(name, stack.enter_context(worker), serving)


def _limits(candidate: Candidate, body: int) -> dict[str, float]:
    """Memory each of our sides may take: what it holds before the first trip, and two bodies (MB)."""
    validator = float(candidate.validator("built")["resident_mb"])
    miner = max(float(worker("memory")["resident_mb"]) for worker in candidate.miners)
    return {"validator": validator + 2 * body / 1e6, "miner": miner + 2 * body / 1e6}


def _copy(worker: Worker, miners: int) -> float:
    """The least a trip over TCP takes on two cores: each side copies every byte once, at the same time."""
    return 2 * miners * float(worker("copy")["seconds"])


def _rows(
    seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, tuple[float, float]], limits: Mapping[str, float]
) -> list[Row]:
    rows = []
    for name, times in seconds.items():
        validator, miner = peaks.get(name, (0.0, 0.0))
        extra: dict[str, float | str] = {"validator_peak_mb": round(validator, 1), "miner_peak_mb": round(miner, 1)}
        if name.startswith("fedgpt2"):
            extra |= {f"{side}_limit_mb": round(limit, 1) for side, limit in limits.items()}
        extra["share_of_limit"] = round(_share(name, seconds), 3)
        rows.append(Row(name, times, max(validator, miner), extra))
    return rows


def _share(name: str, seconds: Mapping[str, Sequence[float]]) -> float:
    """Of TCP's speed that a candidate reaches; of memcpy's that TCP does; median by turn."""
    kind, dot, number = name.partition(".")
    limit = ("memcpy" if kind in ("tcp", "memcpy") else "tcp") + dot + number
    return median(best / own for best, own in zip(seconds[limit], seconds[name], strict=True))


def _notes(rows: Sequence[Row], schema: Schema, body: int, miners: Sequence[int]) -> list[str]:
    """The targets and what came of them."""
    times, by_name = ratios(rows), {row.name: row for row in rows}
    lines = [
        f"{len(schema)} tensors, {body / 1e6:.1f} MB out and as much back; limit of tcp is memcpy, of the rest tcp"
    ]
    for n in miners:
        ours = row_name("fedgpt2", n)
        reached = ", ".join(
            f"{times[f'{ours}/{row_name(peer, n)}']:.2f}x {row_name(peer, n)} (target {target})"
            for peer, target in _TARGETS.items()
        )
        extra = by_name[ours].extra
        memory = ", ".join(
            f"{side} {extra[f'{side}_peak_mb']} of {extra[f'{side}_limit_mb']} MB" for side in ("validator", "miner")
        )
        lines.append(f"{ours}: {reached}; {memory}")
    return lines
