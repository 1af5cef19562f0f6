"""`fedgpt2 bench compute`: the gradient of one batch on this CPU, against transformers and the hardware.

Random tokens are timed; text of the embedded corpus is trained on before gradients are compared again.
"""

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from fedgpt2.cli.bench.report import Row, interleave, ratios, report
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.cli.process import SPIN_COUNT
from fedgpt2.config import Data, Model
from fedgpt2.errors import UsageError
from fedgpt2.types import ModelShape

__all__ = ["run"]

_MODULE = "fedgpt2.cli.bench.compute_worker"
_REFERENCE = "transformers.fp32"
_STEP_TOKENS = 256  # tokens of a training step: 200 steps of 124M take two to three minutes on two cores
_STEP_LR = 3e-4
_COMPARED = 4  # windows on which gradients are compared
_BLOCK = 1 << 20  # values whose float64 copies exist at once when gradients are compared


@dataclass(frozen=True)
class Batch:
    """Windows of a batch: `count` of `length` target tokens."""

    count: int
    length: int

    @property
    def tokens(self) -> int:
        """Target tokens."""
        return self.count * self.length

    def flops(self, shape: ModelShape) -> float:
        """Multiply-adds of one gradient, times two: matmuls only, head counted, attention unmasked."""
        matrices = 12 * shape.n_layer * shape.n_embd**2 + shape.vocab_size * shape.n_embd
        attention = 2 * shape.n_layer * self.length * shape.n_embd
        return 6.0 * self.tokens * (matrices + attention)


@dataclass(frozen=True)
class Field:
    """Who takes part on a CPU whose faster arithmetic is `precision`, bf16 or fp32."""

    precision: str

    @classmethod
    def here(cls) -> "Field":
        """That of this machine."""
        import torch

        from fedgpt2.model.hardware import native_precision

        return cls(native_precision(torch.device("cpu")))

    @property
    def best(self) -> str:
        """transformers' fastest as it is shipped."""
        return f"transformers.sdpa.{self.precision}"

    @property
    def candidates(self) -> tuple[str, ...]:
        """All that compute a gradient, ours first."""
        plain = ("fedgpt2.fp32",) if self.precision == "bf16" else ()
        return ("fedgpt2", *plain, _REFERENCE, self.best, f"{self.best}.malloc")

    @property
    def limits(self) -> tuple[str, ...]:
        """The hardware's own pace."""
        return ("limit.bf16", "limit.fp32") if self.precision == "bf16" else ("limit.fp32",)

    def limit(self, name: str) -> str:
        """Which of these a candidate is held against."""
        return "limit.fp32" if "fp32" in name else f"limit.{self.precision}"


def run(preset: str, repeats: int, as_json: bool, tokens: int = 2048, steps: int = 200) -> int:
    """Measure, print, return the exit code.

    `tokens` of a batch are timed in windows of at most 256; gradients are compared at initialisation and
    after `steps` optimizer steps of 256 tokens of text (0 leaves that out). Raises UsageError for an
    unknown preset, a batch below one window, or where transformers is not installed.
    """
    shape = Model(preset=preset).shape
    length = min(256, shape.block_size)
    if tokens < length or repeats < 1 or steps < 0:
        raise UsageError(f"bench compute needs at least {length} tokens, one repeat and no negative steps")
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("bench compute measures against transformers: python -m pip install 'transformers>=5'")
    batch, field = Batch(tokens // length, length), Field.here()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker.start(name, _MODULE, name, preset, unset=_unset(name)))
            for name in (*field.candidates, *field.limits)
        }
        rows = _measure(workers, field, shape, batch, repeats, Path(folder))
        rows = _compare(workers, rows, shape, batch, steps, Path(folder))
    report("compute", rows, as_json=as_json, notes=_notes(rows, field, batch, steps))
    return 0


def _unset(name: str) -> tuple[str, ...]:
    """What others are not given: they wait as they are shipped."""
    return () if name.startswith("fedgpt2") else (SPIN_COUNT,)


def _measure(
    workers: Mapping[str, Worker], field: Field, shape: ModelShape, batch: Batch, repeats: int, folder: Path
) -> list[Row]:
    """Time all candidates in turns; peak memory is taken before anything but gradients ran.

    Each measurement follows one that is not measured, and afterwards the worker gives its memory back: so
    the machine holds the peak of one candidate at a time, not of all seven.
    """
    random = np.random.default_rng(0)
    np.save(folder / "random.npy", random.integers(0, shape.vocab_size, (batch.count, batch.length + 1)))
    _write_initial(shape, folder / "initial.bin")
    for name in field.candidates:
        workers[name]("load", path=str(folder / "initial.bin"))
    turns: dict[str, Callable[[], float | None]] = {
        name: partial(_discard, workers[name], "gradient", path=str(folder / "random.npy")) for name in field.candidates
    }
    for name in field.limits:
        turns[name] = partial(_discard, workers[name], "multiply", flops=batch.flops(shape))
    seconds = interleave(
        turns, repeats, before=lambda name: _warm(turns[name]), after=lambda name: _release(workers[name])
    )
    peaks = {name: float(workers[name]("peak")["peak_mb"]) for name in seconds}
    rows = []
    for name, times in seconds.items():
        extra = {
            "tokens_per_s": round(batch.tokens / median(times)),
            "gflops": round(batch.flops(shape) / median(times) / 1e9),
            "share_of_limit": round(min(seconds[field.limit(name)]) / median(times), 3),
        }
        rows.append(Row(name, times, peaks[name], extra))
    return rows


def _compare(
    workers: Mapping[str, Worker], rows: Sequence[Row], shape: ModelShape, batch: Batch, steps: int, folder: Path
) -> list[Row]:
    """Add to each row how its gradient of real text agrees with the reference, before and after training."""
    compared = min(batch.count, _COMPARED)
    text = _text(batch.length, compared + steps * max(1, _STEP_TOKENS // batch.length))
    np.save(folder / "text.npy", text[:compared])
    extra = {row.name: dict(row.extra) for row in rows}
    stages = {"initial": str(folder / "initial.bin")}
    if steps:
        np.save(folder / "steps.npy", text[compared:].reshape(steps, -1, batch.length + 1))
        trained = str(folder / "trained.bin")
        workers["fedgpt2"]("train", path=str(folder / "steps.npy"), lr=_STEP_LR, to=trained)
        _release(workers["fedgpt2"])
        stages["trained"] = trained
    for stage, weights in stages.items():
        reference = _gradient(workers[_REFERENCE], weights, folder)
        for name in extra:
            if name != _REFERENCE and not name.startswith("limit."):
                whole, worst = _cosines(shape, _gradient(workers[name], weights, folder), reference)
                extra[name] |= {f"cosine_{stage}": whole, f"cosine_{stage}_worst": worst}
    return [Row(row.name, row.seconds, row.peak_mb, extra[row.name]) for row in rows]


def _warm(turn: Callable[[], float | None]) -> None:
    turn()


def _release(worker: Worker) -> None:
    worker("release")


def _discard(worker: Worker, command: str, **arguments: object) -> None:
    worker(command, **arguments)


def _gradient(worker: Worker, weights: str, folder: Path) -> Path:
    path = folder / f"{worker.name}.bin"
    worker("load", path=weights)
    worker("gradient", path=str(folder / "text.npy"))
    worker("save", path=str(path))
    _release(worker)
    return path


def _write_initial(shape: ModelShape, path: Path) -> None:
    from fedgpt2.model.gpt2 import initialise

    path.write_bytes(initialise(shape, 0).memory())


def _text(length: int, count: int) -> np.ndarray:
    """`count` windows [count, length + 1] of the embedded corpus, repeated if it has fewer."""
    from fedgpt2.data.corpus import Corpus

    corpus = Corpus.open(Data(source="sample"), length, seed=0)
    windows: list[np.ndarray] = []
    turn = 0
    while len(windows) < count:
        windows.extend(corpus.windows(corpus.assign(turn, 0, count - len(windows))))
        turn += 1
    return np.stack(windows)


def _cosines(shape: ModelShape, path: Path, reference: Path) -> tuple[float, float]:
    """Cosine of two gradients, of all values together and of the tensor that agrees least (float64)."""
    ours, theirs = (np.memmap(file, np.float32, "r") for file in (path, reference))
    sums, offset = [], 0
    for dimensions in shape.schema().values():
        size = int(np.prod(dimensions))
        sums.append(sum(_products(ours, theirs, first, offset + size) for first in _firsts(offset, size)))
        offset += size
    parts = np.array(sums)
    dot, x, y = parts.sum(0)
    tensors = parts[:, 0] / np.sqrt(parts[:, 1] * parts[:, 2])
    return round(float(dot / np.sqrt(x * y)), 7), round(float(tensors.min()), 7)


def _firsts(offset: int, size: int) -> range:
    return range(offset, offset + size, _BLOCK)


def _products(ours: np.ndarray, theirs: np.ndarray, first: int, end: int) -> np.ndarray:
    """[<a, b>, <a, a>, <b, b>] of one block."""
    a, b = (array[first : min(first + _BLOCK, end)].astype(np.float64) for array in (ours, theirs))
    return np.array([a @ b, a @ a, b @ b])


def _notes(rows: Sequence[Row], field: Field, batch: Batch, steps: int) -> list[str]:
    """The targets and what came of them; two of them are of bf16 against fp32, for CPUs that have both."""
    by_name = {row.name: row for row in rows}
    ours, times = by_name["fedgpt2"], ratios(rows)
    wide = field.precision == "fp32"
    targets = {} if wide else {_REFERENCE: 3.0}
    targets |= {field.best: 1.3, f"{field.best}.malloc": 1.0}
    lines = [f"batch {batch.count} x {batch.length} tokens; shares are of the fastest limit row"]
    if wide:
        lines.append("this CPU has no instructions for bf16: everything is fp32")
        lines.append(f"{1 / times[f'fedgpt2/{_REFERENCE}']:.2f}x as fast as {_REFERENCE}")
    for peer, target in targets.items():
        lines.append(f"{1 / times[f'fedgpt2/{peer}']:.2f}x as fast as {peer} (target {target})")
    limit = field.limit("fedgpt2")
    bare = 1 / times[f"{limit}/{_REFERENCE}"]
    lines.append(f"the bare matmuls, {limit}, would be {bare:.2f}x as fast as {_REFERENCE}")
    share = ours.peak_mb / by_name[_REFERENCE].peak_mb
    lines.append(f"{share:.2f} of the memory of {_REFERENCE}{'' if wide else ' (target 0.50)'}")
    for stage in ("initial", "trained") if steps else ("initial",):
        after = f"after {steps} steps of {_STEP_TOKENS} tokens" if stage == "trained" else "at initialisation"
        lines.append(f"cosine {ours.extra[f'cosine_{stage}']} to {_REFERENCE} {after} (target 0.999)")
    return lines
