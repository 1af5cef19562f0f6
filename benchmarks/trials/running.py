"""Run cells as processes of their own, several at a time, and append each result to the table."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any, Protocol

from fedgpt2.cli.bench.report import commit, hardware
from trials.cells import Cell
from trials.table import Result, ResultTable

__all__ = ["Failed", "RunDirectories", "command", "condense", "run"]

_TICK = 0.1  # seconds between polls of the running cells
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_LIMIT = 1800.0  # seconds of wall time a cell
_DIVERGED = "diverged"  # in the error of a training whose loss is not finite
_COLUMNS = ("round", "applied", "reason", "hostile_share", "cosine", "train_loss", "val_loss")  # kept of each round


class RunDirectories(Protocol):
    """The run directories that cells start in."""

    @property
    def rounds(self) -> int:
        """Rounds already trained when a cell starts."""

    def prepare(self, seeds: Sequence[int], say: Callable[[str], None]) -> None:
        """Prepare the directories for cells of these seeds."""

    def flags(self, cell: Cell) -> tuple[str, ...]:
        """Create the cell's directory and return the flags that name it."""
        ...

    def release(self, cell: Cell) -> None:
        """Remove the directory of a cell that ended."""


@dataclass(frozen=True)
class Failed:
    """A cell that ended without a result, with its last line of stderr."""

    name: str
    error: str


def condense(
    cell: Cell, code: int, out: str, err: str, seconds: tuple[float, float], before: int = 0
) -> Result | Failed:
    """Make a result of a process's output: `seconds` of CPU and wall time, the first `before` rounds left out."""
    error = (err.strip().splitlines() or [f"exit code {code}"])[-1]
    date = datetime.now(UTC).isoformat(timespec="seconds")
    if code == 1 and _DIVERGED in error:
        return Result(cell.name, None, [], None, commit(), *seconds, hardware(), date=date)
    if code != 0:
        return Failed(cell.name, error)
    document = json.loads(out)
    rows = [row for row in document["rounds"] if row["round"] > before]
    rounds = [{name: _rounded(row.get(name)) for name in _COLUMNS} for row in rows]
    final, unigram = document["final_val_loss"], document["unigram_loss"]
    ranks, pay = _sides(document["miners"]) if document["settings"]["ranking"]["rule"] != "off" else ({}, {})
    return Result(cell.name, final, rounds, unigram, commit(), *seconds, hardware(), ranks, pay, date)


def _sides(miners: Sequence[dict[str, Any]]) -> tuple[dict[str, list[int | None]], dict[str, list[float]]]:
    """Ranks and pay of hostile and honest miners."""
    sides = {side: [m for m in miners if m["hostile"] == (side == "hostile")] for side in ("hostile", "honest")}
    ranks = {side: [miner["rank"] for miner in each] for side, each in sides.items()}
    return ranks, {side: [miner["pay"] or 0.0 for miner in each] for side, each in sides.items()}


def _rounded(value: Any) -> Any:  # noqa: ANN401  (any value of a row)
    """Floats to six digits, so that the table stays small."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class _Process:
    cell: Cell
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    began: float
    before: int  # rounds that the cell starts from

    def result(self) -> Result | Failed | None:
        """The result, once the process has ended."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            if time.monotonic() > self.began + _LIMIT:
                os.kill(self.process.pid, signal.SIGKILL)  # `process.kill` would reap it before `wait4`
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        seconds = (round(usage.ru_utime + usage.ru_stime, 2), round(time.monotonic() - self.began, 2))
        return condense(self.cell, self.process.returncode, _text(self.out), _text(self.err), seconds, self.before)


def run(
    cells: Sequence[Cell],
    common: Sequence[str],
    table: ResultTable,
    jobs: int,
    on_change: Callable[[Sequence[Cell], Result | Failed | None], None],
    known: Callable[[Cell], bool] = lambda _cell: False,
    directories: RunDirectories | None = None,
) -> list[Failed]:
    """Run the cells that `table` lacks, `jobs` at a time, except those already `known`; return the failed ones.

    `on_change` is called at every start and end with the running cells and the result, if one came. An interruption
    ends the running cells; finished ones stay in the table.
    """
    waiting = [cell for cell in cells if table.get(cell) is None]
    failures = []
    with _processes(directories) as running:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                if not known(cell):
                    running.append(_start(cell, common, directories))
                on_change([each.cell for each in running], None)
            for each, result in _ended(running):
                running.remove(each)
                if directories:
                    directories.release(each.cell)
                if isinstance(result, Result):
                    table.add(result)
                else:
                    failures.append(result)
                on_change([other.cell for other in running], result)
            time.sleep(_TICK)
    return failures


def command(cell: Cell, common: Sequence[str]) -> list[str]:
    """Arguments of the interpreter for a cell."""
    return ["-m", "fedgpt2", "simulate", *cell.flags(), *common, "--json"]


def _start(cell: Cell, common: Sequence[str], directories: RunDirectories | None) -> _Process:
    where, before = (directories.flags(cell), directories.rounds) if directories else ((), 0)
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command(cell, (*common, *where))],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C reaches this process only, which ends the others
    )
    return _Process(cell, process, out, err, began, before)


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace")


def _ended(running: Sequence[_Process]) -> list[tuple[_Process, Result | Failed]]:
    polled = [(each, each.result()) for each in running]
    return [(each, result) for each, result in polled if result is not None]


@contextmanager
def _processes(directories: RunDirectories | None) -> Iterator[list[_Process]]:
    """A list of processes that are ended when the block is left."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for each in running:
            each.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for each in running:
            try:
                each.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
            each.out.close()
            each.err.close()
            if directories:
                directories.release(each.cell)
