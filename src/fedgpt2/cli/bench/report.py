"""What every bench shares: taking turns, naming the machine, printing rows and ratios.

The machine is shared with whatever else runs on it, so candidates take turns within one run and are
compared turn by turn: a ratio is the median over turns of the two times of that turn.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedgpt2.model.cores import usable_cores

__all__ = ["Row", "commit", "hardware", "interleave", "ratios", "report"]

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Row:
    """One candidate: its times turn by turn (s), peak memory of its process (MB), and what else it shows.

    Only rows of one `group` did the same work and are compared; a name may end in @ and a word for its group.
    """

    name: str
    seconds: Sequence[float]
    peak_mb: float
    extra: Mapping[str, float | str] = field(default_factory=dict)
    group: str = ""

    def as_json(self) -> dict[str, object]:
        """The row as JSON prints it."""
        spread = {"min": min(self.seconds), "median": median(self.seconds), "max": max(self.seconds)}
        seconds = {name: round(value, 6) for name, value in spread.items()}
        return {"name": self.name, "seconds": seconds, "peak_mb": round(self.peak_mb, 1), **self.extra}


def interleave(
    candidates: Mapping[str, Callable[[], float | None]],
    repeats: int,
    *,
    before: Callable[[str], None] | None = None,
    after: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each candidate, turn by turn: once each unmeasured, then `repeats` turns.

    A candidate that returns a number has measured itself. Every turn begins with another candidate, so that none is
    always the first. `before` and `after`, given a name, run unmeasured around each measurement; with
    `before` there is no first round.
    """
    names = list(candidates)
    for name in names if before is None else ():
        candidates[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if before is not None:
                before(name)
            start = time.perf_counter()
            own = candidates[name]()
            seconds[name].append(time.perf_counter() - start if own is None else own)
            if after is not None:
                after(name)
    return seconds


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """`a/b` for each ordered pair of rows of a group with equally many turns: median of a's time over b's, by turn.

    Names are without their group; of two pairs of the same names the one that comes first counts.
    """
    found: dict[str, float] = {}
    for a, b in permutations(rows, 2):
        if a.group == b.group and len(a.seconds) == len(b.seconds):
            pair = "/".join(row.name.partition("@")[0] for row in (a, b))
            found.setdefault(pair, round(median(x / y for x, y in zip(a.seconds, b.seconds, strict=True)), 4))
    return found


def hardware() -> str:
    """This machine in one line: CPU, cores this process may use, what it has for bf16, memory.

    Hosts hide a CPU's name, seldom its family and model: bf16 is twice as fast as fp32 on one, four times on the next.
    """
    fields = _cpuinfo()
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = fields.get("model name", "unknown CPU")
    if "cpu family" in fields and "model" in fields:
        cpu = f"{cpu} (family {fields['cpu family']} model {fields['model']})"
    return f"{cpu}, {usable_cores()} cores, {' '.join(flags) or 'no bf16'}, {memory:.0f} GiB"


def commit() -> str:
    """The commit this package is at, with -dirty where it was changed; "unknown" outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    answer = subprocess.run(  # noqa: S603  (a fixed command)
        [git, "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown"


def report(bench: str, rows: Sequence[Row], *, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print the rows and their ratios: a table with ratios to the first row, or one JSON object.

    `notes` are lines under the table, such as a target and what came of it; JSON carries them too.
    """
    if as_json:
        document = {
            "bench": bench,
            "commit": commit(),
            "hardware": hardware(),
            "rows": [row.as_json() for row in rows],
            "ratios": ratios(rows),
            "notes": list(notes),
        }
        print(json.dumps(document, indent=2))
        return
    console = Console()
    console.print(f"{bench}: commit {commit()}, {hardware()}", highlight=False, soft_wrap=True)
    console.print(_times(rows))
    shown = [f"{row.name}: " + ", ".join(f"{k} {v}" for k, v in row.extra.items()) for row in rows if row.extra]
    for note in [*shown, *notes]:
        console.print(note, highlight=False, soft_wrap=True)


def _times(rows: Sequence[Row]) -> Table:
    to_first = ratios(rows)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for column in ("median s", "min", "max", "peak MB", f"/ {rows[0].name}"):
        table.add_column(column, justify="right")
    for row in rows:
        times = (_cell(value) for value in (median(row.seconds), min(row.seconds), max(row.seconds)))
        ratio = to_first.get(f"{row.name}/{rows[0].name}", "")
        table.add_row(row.name, *times, f"{row.peak_mb:.0f}", _cell(ratio))
    return table


def _cell(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpuinfo() -> dict[str, str]:
    if not _CPUINFO.exists():
        return {}
    lines = _CPUINFO.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
