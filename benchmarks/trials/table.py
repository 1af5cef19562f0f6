"""The results of many cells in one JSONL file: a head with the flags that all cells share, then a line a finished cell.

A line is appended when its cell ends, so an interrupted run resumes with the cells that are missing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedgpt2.errors import UsageError
from trials.cells import Cell

__all__ = ["Result", "ResultTable"]


@dataclass(frozen=True)
class Result:
    """Result of one cell; without a final loss the training diverged."""

    name: str
    final_val_loss: float | None
    rounds: list[dict[str, Any]]
    unigram_loss: float | None
    commit: str
    cpu_seconds: float
    wall_seconds: float
    hardware: str = ""
    ranks: dict[str, list[int | None]] = field(default_factory=dict)  # after the last round, by "hostile" and "honest"
    pay: dict[str, list[float]] = field(default_factory=dict)  # the same for pay
    date: str = ""


@dataclass(frozen=True)
class ResultTable:
    """The rows of one file, by the names of their cells."""

    path: Path
    flags: tuple[str, ...]
    rows: dict[str, Result]

    @classmethod
    def open(cls, path: Path, flags: Sequence[str], log: str = "") -> "ResultTable":
        """Read or create the table of these flags. Raises UsageError for a file with other flags."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"flags": list(flags), "log": log}) + "\n")
        lines = path.read_text().split("\n")
        if lines.pop():  # the last line was cut off by an interruption
            path.write_text("".join(line + "\n" for line in lines))
        if json.loads(lines[0])["flags"] != list(flags):
            raise UsageError(f"{path} holds cells with other flags: name another file with --table, or remove it")
        rows = (_read(line) for line in lines[1:])
        return cls(path, tuple(flags), {row.name: row for row in rows})

    @classmethod
    def read(cls, path: Path) -> "ResultTable":
        """Read an existing table, whatever its flags."""
        with path.open() as file:
            return cls.open(path, json.loads(file.readline())["flags"])

    @property
    def digest(self) -> str:
        """Short name of the flags."""
        return sha256("\0".join(self.flags).encode()).hexdigest()[:12]

    def get(self, cell: Cell) -> Result | None:
        """The cell's result, if it is finished."""
        return self.rows.get(cell.name)

    def add(self, result: Result) -> None:
        """Append a finished cell."""
        self.rows[result.name] = result
        with self.path.open("a") as file:
            file.write(_line(result))

    def finished(self, cells: Iterable[Cell]) -> dict[Cell, Result]:
        """The results of those cells that are finished."""
        return {cell: self.rows[cell.name] for cell in cells if cell.name in self.rows}


def _line(result: Result) -> str:
    """A row as JSON; its rounds as one list a column."""
    names = list(result.rounds[0]) if result.rounds else []
    columns = {name: [row[name] for row in result.rounds] for name in names}
    return json.dumps({**asdict(result), "rounds": columns}, separators=(",", ":")) + "\n"


def _read(line: str) -> Result:
    row = json.loads(line)
    columns = row.pop("rounds")
    rounds = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Result(rounds=rounds, **row)
