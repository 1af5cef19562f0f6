"""Runs cells, each a process of its own, and keeps what each of them said: one file a cell, whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from fedgpt2.cli.bench.report import commit, hardware
from trials.cells import Cell

__all__ = ["Failed", "Place", "Result", "Store", "command", "condense", "run"]

_TICK = 0.1  # seconds between looks at the running cells
_PATIENCE = 5.0  # seconds a cell has to end when told to
_LIMIT = 1800.0  # seconds of wall time for one cell
_DIVERGED = "diverged"  # in the line of a training whose loss is no number any more
_KEPT = ("round", "applied", "reason", "hostile_share", "cosine", "train_loss", "val_loss")  # of each round


@dataclass(frozen=True)
class Result:
    """What came of a cell; without a final loss it diverged."""

    name: str
    final_val_loss: float | None
    rounds: list[dict[str, Any]]
    unigram_loss: float | None
    commit: str
    cpu_seconds: float
    wall_seconds: float
    hardware: str = ""
    ranks: dict[str, list[int | None]] = field(default_factory=dict)  # after the last round: of hostile, of honest
    pay: dict[str, list[float]] = field(default_factory=dict)  # the same of what each is paid


class Place(Protocol):
    """Where cells keep their run directories."""

    @property
    def rounds(self) -> int:
        """How many rounds there are already when a cell begins."""

    def prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Make ready for cells of these seeds."""

    def flags(self, cell: Cell) -> tuple[str, ...]:
        """Those that put the cell there."""
        ...

    def drop(self, cell: Cell) -> None:
        """The cell is over, or was interrupted."""


@dataclass(frozen=True)
class Failed:
    """A cell that ended without a result, and its last words."""

    name: str
    said: str


@dataclass(frozen=True)
class Store:
    """A folder of results, for one set of common flags: others are filed elsewhere and never mixed up with them."""

    folder: Path

    @classmethod
    def open(cls, root: Path, common: Sequence[str]) -> "Store":
        """The folder of these flags under `root`, made if need be."""
        folder = root / sha256("\0".join(common).encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "flags.json").write_text(json.dumps(list(common)) + "\n")
        return cls(folder)

    def path(self, cell: Cell) -> Path:
        """Where the cell's result lies, once there is one."""
        return self.folder / f"{cell.name}.json"

    def get(self, cell: Cell) -> Result | None:
        """The cell's result, if it is finished."""
        path = self.path(cell)
        return Result(**json.loads(path.read_text())) if path.exists() else None

    def put(self, cell: Cell, result: Result) -> None:
        """Keep the result: whoever looks sees all of it or nothing."""
        path = self.path(cell)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(result)) + "\n")
        part.replace(path)

    def finished(self, cells: Sequence[Cell]) -> dict[Cell, Result]:
        """The results there are."""
        found = {cell: self.get(cell) for cell in cells}
        return {cell: result for cell, result in found.items() if result is not None}


def condense(
    cell: Cell, code: int, out: str, err: str, seconds: tuple[float, float], before: int = 0
) -> Result | Failed:
    """What a process left behind, as a result: `seconds` of CPU and of the clock, rounds `before` it left out."""
    said = (err.strip().splitlines() or [f"exit code {code}"])[-1]
    if code == 1 and _DIVERGED in said:
        return Result(cell.name, None, [], None, commit(), *seconds, hardware())
    if code != 0:
        return Failed(cell.name, said)
    document = json.loads(out)
    rows = [row for row in document["rounds"] if row["round"] > before]
    rounds = [{name: _short(row.get(name)) for name in _KEPT} for row in rows]
    final, unigram = document["final_val_loss"], document["unigram_loss"]
    scored = document["settings"]["ranking"]["rule"] != "off"
    sides = {
        side: [miner for miner in document["miners"] if miner["hostile"] == hostile]
        for side, hostile in (("hostile", True), ("honest", False))
        if scored
    }
    ranks = {side: [miner["rank"] for miner in miners] for side, miners in sides.items()}
    pay = {side: [miner["pay"] or 0.0 for miner in miners] for side, miners in sides.items()}
    return Result(cell.name, final, rounds, unigram, commit(), *seconds, hardware(), ranks, pay)


def _short(value: Any) -> Any:  # noqa: ANN401  (whatever a row holds)
    """Numbers to six digits: a file a cell is kept beside the code."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class _Process:
    cell: Cell
    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    began: float
    before: int  # rounds that it goes on from

    def result(self) -> Result | Failed | None:
        """What came of it, once it has ended."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() > self.began + _LIMIT:
                os.kill(self.process.pid, signal.SIGKILL)  # not `process.kill`: it would take the end from `wait4`
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        seconds = (round(usage.ru_utime + usage.ru_stime, 2), round(time.monotonic() - self.began, 2))
        out, err = self.out.read_text(errors="replace"), self.err.read_text(errors="replace")
        self.out.unlink()
        self.err.unlink()
        return condense(self.cell, self.process.returncode, out, err, seconds, self.before)


def run(
    cells: Sequence[Cell],
    common: Sequence[str],
    store: Store,
    jobs: int,
    told: Callable[[Sequence[Cell], Result | Failed | None], None],
    spared: Callable[[Cell], bool] = lambda _cell: False,
    place: Place | None = None,
) -> list[Failed]:
    """Run the cells that `store` lacks, `jobs` at a time, but for those `spared` when their turn comes.

    Each begins where `place` says, else at the beginning. Returns those that failed.

    `told` hears of every start and end: the cells running now, and the result where one came. An interruption ends the
    running ones and loses nothing else.
    """
    waiting = [cell for cell in cells if store.get(cell) is None]
    failures = []
    with _processes(place) as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                if not spared(cell):
                    begin = place.flags(cell) if place else ()
                    running.append(_start(cell, (*common, *begin), store, place.rounds if place else 0))
                told([each.cell for each in running], None)
            for each, result in _ended(running):
                running.remove(each)
                if place:
                    place.drop(each.cell)
                if isinstance(result, Result):
                    store.put(each.cell, result)
                else:
                    failures.append(result)
                told([other.cell for other in running], result)
            time.sleep(_TICK)
    return failures


def command(cell: Cell, common: Sequence[str]) -> list[str]:
    """The command line of a cell, after the interpreter's name."""
    return ["-m", "fedgpt2", "simulate", *cell.flags(), *common, "--json"]


def _start(cell: Cell, common: Sequence[str], store: Store, before: int) -> _Process:
    out, err = store.path(cell).with_suffix(".out"), store.path(cell).with_suffix(".err")
    began = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *command(cell, common)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is ours; we end them
        )
    return _Process(cell, process, out, err, began, before)


def _ended(running: Sequence[_Process]) -> list[tuple[_Process, Result | Failed]]:
    looked = [(each, each.result()) for each in running]
    return [(each, result) for each, result in looked if result is not None]


@contextmanager
def _processes(place: Place | None) -> Iterator[list[_Process]]:
    """A list whose processes are ended when it is left."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for each in running:
            each.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        for each in running:
            try:
                each.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
            if place:
                place.drop(each.cell)
