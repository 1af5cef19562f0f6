"""Rank hostile miners against honest ones, attack by attack, from the first round on.

    .venv/bin/python benchmarks/ranking_arena.py [--jobs 2] [--seeds 1 2 3] [--only TEXT ...] [--page FILE] [--json]
                                                 [--table FILE] [-- FLAGS of fedgpt2 simulate]
    .venv/bin/python benchmarks/ranking_arena.py --ledgers FOLDER [--again] ...

Trains `nano` on the embedded text for 30 rounds with 12 miners, 3 of them hostile, once an attack and seed, by
`fedgpt2 simulate` with the package's ranking defaults or FLAGS. Each finished run is a line of the table, so an
interruption loses only the running ones. When all attacks are finished, --page writes their table between the markers
of a page. With --ledgers the runs' ledgers are kept; with --again the kept ledgers are ranked by today's rule, in
seconds, and nothing is trained or written.

It holds if no hostile miner ends above an honest one, and if hostile miners that send one gradient (`copy` and the
like) together earn at most an honest miner's mean pay. Sybils share one honest miner's work: one of their names may
rank above honest miners, and either all together earn at most an honest miner's mean pay, or only one is paid, at most
as much as the best-paid honest miner. Each seed is judged by itself. The exit code is 1 if it does not hold or a run
failed.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.errors import FedGPT2Error
from fedgpt2.simulate.attacks.registry import NAMES, SYBILS
from trials.cells import BYZANTINE, Cell
from trials.ledgers import KeptLedgers
from trials.page import insert
from trials.progress import run_with_progress
from trials.table import Result, ResultTable

TABLE = Path(__file__).resolve().parent / "results" / "ranking-arena.jsonl"
BEGIN, END = "<!-- arena: written by benchmarks/ranking_arena.py -->", "<!-- /arena -->"
SHARED = ("copy", "copy_noise", "mimic_copies")  # several names send an honest miner's gradient
ROUNDS = 30
COMMON = (
    *("--model.preset", "nano", "--data.source", "sample", "--device", "cpu", "--run.threads", "1"),
    *("--rounds", str(ROUNDS)),
    *("--data.windows", "1", "--run.eval_every", "30", "--run.eval_windows", "8", "--run.score_windows", "2"),
    *("--optimizer.lr", "3e-3", "--optimizer.warmup", "2", "--optimizer.beta1", "0.7", "--optimizer.horizon", "60"),
    *("--limits.gradient_norm", "1e12"),  # so that large gradients reach the ranking
)


@dataclass(frozen=True)
class Row:
    """One attack, the worst of all seeds."""

    attack: str
    seeds: int
    above: int  # hostile miners above an honest one
    best: int  # best place of a hostile miner
    mean: float  # pay of all hostile miners over an honest miner's mean, mean over seeds
    together: float  # the same, largest over seeds
    beside: float  # the same without the best-paid hostile miner
    holds: bool  # in every seed


def main() -> int:
    """Run the missing cells, judge, write; 0 when everything holds, 130 when interrupted."""
    arguments = _parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it ignored
    console = Console(stderr=True)
    cells = [Cell("default", True, attack, seed) for seed in arguments.seeds for attack in NAMES]
    chosen = [cell for cell in cells if not arguments.only or any(text in cell.name for text in arguments.only)]
    ledgers = KeptLedgers(arguments.ledgers, ROUNDS) if arguments.ledgers else None
    if ledgers is not None and arguments.again:
        return _again(chosen, ledgers, arguments.json)
    flags = (*COMMON, *arguments.flags)
    try:
        table = ResultTable.open(arguments.table, flags, arguments.log)
        failed = run_with_progress(chosen, flags, table, ledgers, arguments.jobs, console)
    except KeyboardInterrupt:
        console.print("interrupted; start again to go on", highlight=False)
        return 130
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results = table.finished(chosen)
    document = _report(results, flags, as_json=arguments.json)
    if arguments.page and len(results) == len(cells):
        arguments.page.write_text(insert(arguments.page.read_text(), "\n".join(lines(judge(results))), (BEGIN, END)))
    for failure in failed:
        console.print(f"{failure.name}: {failure.error}", style="red", highlight=False)
    return 0 if not failed and document["holds"] else 1


def _again(cells: Sequence[Cell], ledgers: KeptLedgers, as_json: bool) -> int:
    results = {cell: result for cell in cells if (result := ledgers.replayed(cell)) is not None}
    return 0 if _report(results, (), as_json=as_json)["holds"] else 1


def _report(results: Mapping[Cell, Result], flags: Sequence[str], *, as_json: bool) -> dict[str, Any]:
    """Print the rows, as JSON or as a table; return the JSON document."""
    rows = judge(results)
    document = _document(rows, results, flags)
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines(rows)))
    return document


def judge(results: Mapping[Cell, Result]) -> list[Row]:
    """One row an attack, broken ones first."""
    rows = [_row(attack, [r for cell, r in results.items() if cell.attack == attack]) for attack in NAMES]
    return sorted((row for row in rows if row is not None), key=lambda row: (row.holds, row.best))


def _row(attack: str, results: Sequence[Result]) -> Row | None:
    if not results:
        return None
    if not all(r.ranks for r in results):  # a diverged training has no ranks
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
    """Whether no hostile miner ranks above an honest one, and those that share work are paid for one miner."""
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
    """Pay of the miners of a side over an honest miner's mean."""
    mean = max(fmean(result.pay["honest"]), 1e-12)
    return [pay / mean for pay in result.pay[side]]


def _places(result: Result, side: str) -> list[int]:
    """Places of a side; a miner without a rank is last."""
    behind = sum(map(len, result.ranks.values())) + 1
    return [behind if rank is None else rank for rank in result.ranks[side]]


def lines(rows: Sequence[Row]) -> list[str]:
    """The rows as a Markdown table."""
    paid = ("pay of all three, mean", "at most", "without the best")
    names = ("attack", "seeds", "above an honest miner", "best place", *paid, "")
    made = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        pays = (f"{pay:.2f}" for pay in (row.mean, row.together, row.beside))
        cells = [row.attack, str(row.seeds), str(row.above), str(row.best), *pays]
        made.append(f"| {' | '.join(cells)} | {'holds' if row.holds else 'broken'} |")
    return made


def _document(rows: Sequence[Row], results: Mapping[Cell, Result], flags: Sequence[str]) -> dict[str, Any]:
    return {
        "bench": "ranking-arena",
        "commit": commit(),
        "hardware": hardware(),
        "settings": list(flags),
        "cell_commits": sorted({result.commit for result in results.values()}),
        "cpu_minutes": round(sum(result.cpu_seconds for result in results.values()) / 60, 1),
        "rows": [{name: _number(value) for name, value in vars(row).items()} for row in rows],
        "holds": bool(rows) and all(row.holds for row in rows),
    }


def _number(value: str | float) -> str | float | None:
    return None if value == math.inf else value


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds; one training each for every attack")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="run only those with this in their name")
    parser.add_argument("--table", type=Path, metavar="FILE", default=TABLE, help="table of finished runs")
    parser.add_argument("--page", type=Path, help="Markdown file with markers for the table")
    parser.add_argument("--ledgers", type=Path, metavar="FOLDER", help="keep the ledgers of the runs there")
    parser.add_argument("--again", action="store_true", help="rank the kept ledgers by today's rule")
    parser.add_argument("--log", default="", help="what else runs on the machine, noted in a new table")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="further settings of every run")
    arguments = parser.parse_args()
    if arguments.again and arguments.ledgers is None:
        parser.error("--again needs --ledgers")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
