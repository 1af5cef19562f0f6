"""Who ends above whom: every attack of the arena under the ranking, from the first round.

    .venv/bin/python benchmarks/ranking_arena.py [--jobs 2] [--seeds 1 2 3] [--only TEXT ...] [--page FILE] [--json]
    .venv/bin/python benchmarks/ranking_arena.py --ledgers FOLDER [--again] ...

Trains `nano` on the embedded text for 30 rounds with 12 miners, 3 of them hostile, once an attack and seed: runs of
`fedgpt2 simulate`. Each finished one is a file in the state folder, so an interruption loses only those that run. When
all are there it writes benchmarks/results/ranking-arena-DATE.json and, into FILE, its table between markers. With
--ledgers the runs' ledgers are kept, and with --again those that were kept are judged by the rule of ranking as it is
now, in seconds: nothing is trained or written.

It holds if no hostile miner ends above an honest one, and if those who share one gradient together are paid no more
than an honest miner is on average. `sybils` and its kin share the work of one honest miner: one name of theirs may
stand where that puts it, the others stand above nobody; and either all are paid no more than an honest miner is on
average, or all but one are paid nothing, and that one no more than some honest miner: what one is paid depends on its
luck. Each seed is judged by itself. The exit code is 1 if it does not hold, or if a run failed.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

import record
from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.errors import FedGPT2Error
from fedgpt2.simulate.attacks.registry import NAMES, SYBILS
from trials.cells import BYZANTINE, Cell
from trials.ledgers import Ledgers
from trials.page import woven
from trials.progress import watched
from trials.running import Result, Store

STATE = Path(__file__).resolve().parent / "results" / "ranking-arena-cells"
BEGIN, END = "<!-- arena: written by benchmarks/ranking_arena.py -->", "<!-- /arena -->"
SHARED = ("copy", "copy_noise", "mimic_copies")  # several names, one gradient, that an honest miner computed
ROUNDS = 30
COMMON = (
    *("--model.preset", "nano", "--data.source", "sample", "--device", "cpu", "--run.threads", "1"),
    *("--rounds", str(ROUNDS)),
    *("--data.windows", "1", "--run.eval_every", "30", "--run.eval_windows", "8", "--run.score_windows", "2"),
    *("--optimizer.lr", "3e-3", "--optimizer.warmup", "2", "--optimizer.beta1", "0.7", "--optimizer.horizon", "60"),
    # else the bound of admission refuses the large ones before the ranking sees them
    *("--limits.gradient_norm", "1e12"),
)


@dataclass(frozen=True)
class Row:
    """One attack, all seeds: of each number the worst."""

    attack: str
    seeds: int
    above: int  # hostile miners above some honest one
    best: int  # the best place a hostile miner reached
    mean: float  # pay of all hostile miners over an honest one's mean, on average over seeds
    together: float  # the same, the most
    beside: float  # the same of all but the best paid of them
    holds: bool  # in every seed


def main() -> int:
    """Run what is missing, judge, write; 0 when everything holds, 130 when interrupted."""
    arguments = _parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's shell may have had it ignored
    console = Console(stderr=True)
    cells = [Cell("default", True, attack, seed) for seed in arguments.seeds for attack in NAMES]
    chosen = [cell for cell in cells if not arguments.only or any(text in cell.name for text in arguments.only)]
    ledgers = Ledgers(arguments.ledgers, ROUNDS) if arguments.ledgers else None
    if ledgers is not None and arguments.again:
        return _again(chosen, ledgers, arguments.json)
    store = Store.open(arguments.state, COMMON)
    try:
        failed = watched(chosen, COMMON, store, ledgers, arguments.jobs, console)
    except KeyboardInterrupt:
        console.print("interrupted; start again to go on", highlight=False)
        return 130
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results = store.finished(chosen)
    rows = judged(results)
    document = _document(rows, results)
    _print(document, rows, as_json=arguments.json)
    if len(results) == len(cells):
        _write(document, rows, arguments, console)
    for failure in failed:
        console.print(f"{failure.name}: {failure.said}", style="red", highlight=False)
    return 0 if not failed and document["holds"] else 1


def _again(cells: Sequence[Cell], ledgers: Ledgers, as_json: bool) -> int:
    results = {cell: result for cell in cells if (result := ledgers.judged(cell)) is not None}
    rows = judged(results)
    document = _document(rows, results)
    _print(document, rows, as_json=as_json)
    return 0 if document["holds"] else 1


def _print(document: Mapping[str, Any], rows: Sequence[Row], *, as_json: bool) -> None:
    print(json.dumps(document, indent=2) if as_json else "\n".join(table(rows)))


def judged(results: Mapping[Cell, Result]) -> list[Row]:
    """A row an attack, those that break the rule first."""
    rows = [_row(attack, [r for cell, r in results.items() if cell.attack == attack]) for attack in NAMES]
    return sorted((row for row in rows if row is not None), key=lambda row: (row.holds, row.best))


def _row(attack: str, results: Sequence[Result]) -> Row | None:
    if not results:
        return None
    if not all(r.ranks for r in results):  # a training that diverged ranks nobody, and shows nothing
        return Row(attack, len(results), BYZANTINE, 1, math.inf, math.inf, math.inf, holds=False)
    pays = [_pays(r, "hostile") for r in results]
    return Row(
        attack=attack,
        seeds=len(results),
        above=max(map(_above, results)),
        best=min(place for r in results for place in _places(r, "hostile")),
        mean=fmean(map(sum, pays)),
        together=max(map(sum, pays)),
        beside=max(sum(sorted(pay)[:-1]) for pay in pays),
        holds=all(_holds(attack, r) for r in results),
    )


def _holds(attack: str, result: Result) -> bool:
    """Whether none ends above an honest miner, and sharers of one gradient, or of its work, are paid for one."""
    pays = sorted(_pays(result, "hostile"))
    one = sum(pays) <= 1.0
    if attack in SYBILS:
        lucky = not any(pays[:-1]) and pays[-1] <= max(_pays(result, "honest"))
        return _above(result) <= 1 and (one or lucky)
    return _above(result) == 0 and (attack not in SHARED or one)


def _above(result: Result) -> int:
    last = max(_places(result, "honest"))
    return sum(place < last for place in _places(result, "hostile"))


def _pays(result: Result, side: str) -> list[float]:
    """What the miners of a side are paid, over an honest one's mean."""
    mean = max(fmean(result.pay["honest"]), 1e-12)
    return [pay / mean for pay in result.pay[side]]


def _places(result: Result, side: str) -> list[int]:
    """Places of a side; one never asked is behind all."""
    behind = sum(map(len, result.ranks.values())) + 1
    return [behind if rank is None else rank for rank in result.ranks[side]]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in Markdown."""
    paid = ("pay of all three, mean", "at most", "without the best")
    names = ("attack", "seeds", "above an honest miner", "best place", *paid, "")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        pays = (f"{pay:.2f}" for pay in (row.mean, row.together, row.beside))
        cells = [row.attack, str(row.seeds), str(row.above), str(row.best), *pays]
        lines.append(f"| {' | '.join(cells)} | {'holds' if row.holds else 'broken'} |")
    return lines


def _document(rows: Sequence[Row], results: Mapping[Cell, Result]) -> dict[str, Any]:
    return {
        "bench": "ranking-arena",
        "commit": commit(),
        "hardware": hardware(),
        "settings": list(COMMON),
        "cell_commits": sorted({result.commit for result in results.values()}),
        "cpu_minutes": round(sum(result.cpu_seconds for result in results.values()) / 60, 1),
        "rows": [{name: _number(value) for name, value in vars(row).items()} for row in rows],
        "holds": bool(rows) and all(row.holds for row in rows),
    }


def _number(value: str | float) -> str | float | None:
    return None if value == math.inf else value


def _write(document: Mapping[str, Any], rows: Sequence[Row], arguments: argparse.Namespace, console: Console) -> None:
    now, page = datetime.now(UTC), arguments.page
    command = f"python benchmarks/ranking_arena.py --seeds {' '.join(map(str, arguments.seeds))}"
    entry = {"date": now.isoformat(timespec="seconds"), "command": command, "log": arguments.log}
    console.print(f"wrote {record.write('ranking-arena', {**entry, **document}, now)}", highlight=False)
    if page is not None:
        page.write_text(woven(page.read_text(), "\n".join(table(rows)), (BEGIN, END)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one training each of every attack")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="run only those with this in their name")
    parser.add_argument("--state", type=Path, default=STATE, help="folder of finished runs")
    parser.add_argument("--page", type=Path, help="Markdown file with markers for the table")
    parser.add_argument("--ledgers", type=Path, metavar="FOLDER", help="keep the ledgers of the runs there")
    parser.add_argument("--again", action="store_true", help="judge the kept ledgers by the rule as it is now")
    parser.add_argument("--log", default="", help="for the record: what else ran on the machine")
    parser.add_argument("--json", action="store_true", help="print the record")
    arguments = parser.parse_args()
    if arguments.again and arguments.ledgers is None:
        parser.error("--again needs --ledgers")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
