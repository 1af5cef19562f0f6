"""Measure what three hostile miners of twelve do to the model, attack by attack.

    .venv/bin/python benchmarks/robustness.py [--jobs 2] [--only TEXT ...] [--quick] [--table FILE] [--json]

Trains `nano` on the embedded text by `fedgpt2 simulate`, once a cell (attack, rule, gate, seed); the cells of a seed
share their first, attack-free rounds. Each finished cell is a line of the table, so an interruption loses only the
running cells. When all cells are finished it writes the tables of docs/aggregation.md; `benchmarks/draw.py` draws the
two pictures.

It holds if, for the default rule with the gate and for every seed, each attack's final held-out loss is within its
limit of the attack-free loss, that loss is below a unigram model's, and each positive control breaks a plain mean. The
exit code is 1 if it does not hold or a cell failed.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.errors import FedGPT2Error
from fedgpt2.simulate.attacks.registry import NAMES
from trials import page
from trials.cells import ABSENT, CONTROLS, NONE, SEEDS, Cell, plan, quick
from trials.progress import run_with_progress
from trials.starts import AttackFreeStarts
from trials.table import Result, ResultTable
from trials.twins import completed, differing
from trials.verdicts import Control, Row, baseline, compared, control, judge

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "aggregation.md"
TABLE = ROOT / "benchmarks" / "results" / "robustness.jsonl"
SCRATCH = ROOT / "runs" / "robustness"
BEFORE, ROUNDS = 56, 72  # attack-free rounds, all rounds
COMMON = (
    *("--model.preset", "nano", "--data.source", "sample", "--device", "cpu", "--run.threads", "1"),
    *("--data.windows", "1", "--run.eval_every", "8", "--run.eval_windows", "32", "--run.score_windows", "2"),
    *("--optimizer.lr", "3e-3", "--optimizer.min_lr", "1e-3", "--optimizer.warmup", "2", "--optimizer.beta1", "0.7"),
    *("--optimizer.horizon", str(ROUNDS), "--ranking.rule", "off"),
    *("--limits.gradient_norm", "1e12"),  # so that large gradients reach the rule
)


def main() -> int:
    """Run the missing cells, judge, write; 0 when everything holds, 130 when interrupted."""
    arguments = _parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it ignored
    console = Console(stderr=True)
    try:
        before, rounds = (2, 4) if arguments.quick else (BEFORE, ROUNDS)
        common = (*COMMON, "--rounds", str(rounds))
        cells = quick(NAMES) if arguments.quick else plan(NAMES)
        chosen = [cell for cell in cells if not arguments.only or any(text in cell.name for text in arguments.only)]
        path = arguments.table or (SCRATCH / "quick.jsonl" if arguments.quick else TABLE)
        table = ResultTable.open(path, (*common, "after", str(before)))
        starts = AttackFreeStarts(SCRATCH / table.digest, COMMON, before)
        failed = run_with_progress(chosen, common, table, starts, arguments.jobs, console)
        results = completed(table.finished(cells), cells)
        document = summary(results, common)
        whole = len(results) == len(cells) and not arguments.quick
        _print(document, results, arguments, console)
        if whole:
            write(document, results, common)
            console.print(
                "wrote the tables; `python benchmarks/draw.py robustness` draws the pictures", highlight=False
            )
        else:
            console.print(f"{len(results)} of {len(cells)} cells are finished; wrote no page", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted; start again to go on", highlight=False)
        return 130
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for failure in failed:
        console.print(f"{failure.name}: {failure.error}", style="red", highlight=False)
    broken = [row for row in judge(results, NAMES) if row.worst > row.limit]  # of the finished ones
    return 1 if failed or broken or (whole and not document["holds"]) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="run only cells with this in their name")
    parser.add_argument("--quick", action="store_true", help="run a few cells of four rounds, as a test")
    parser.add_argument("--table", type=Path, metavar="FILE", help=f"table of finished cells (default: {TABLE.name})")
    parser.add_argument("--json", action="store_true", help="print the record")
    return parser.parse_args()


def references(results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    """Attack-free losses of each rule, gate and seed that has both, and the unigram model's."""
    found = []
    for cell, result in results.items():
        alone = Cell(cell.rule, cell.gate, ABSENT, cell.seed)
        if cell.attack == NONE and alone in results:
            losses = {"none": result.final_val_loss, "absent": results[alone].final_val_loss}
            which = {"rule": cell.rule, "gate": cell.gate, "seed": cell.seed}
            found.append({**which, "unigram": result.unigram_loss, **losses})
    return found


def summary(results: Mapping[Cell, Result], common: Sequence[str]) -> dict[str, Any]:
    """All numbers of the page."""
    rows = judge(results, NAMES)
    held = _controls(results)
    attack_free = references(results)
    judged = [each for each in attack_free if each["rule"] == "default"]
    learned = all(_learned(results, each) for each in judged)
    differ = differing(results)
    ran = {result.name: result for result in results.values()}  # a twin once
    complete = len(held) == len(CONTROLS) and len(judged) == len(SEEDS) + 1
    return {
        "bench": "robustness",
        "commit": commit(),
        "hardware": hardware(),
        "settings": {"flags": list(common), "seeds": list(SEEDS), "attack_free_rounds": BEFORE},
        "cell_commits": sorted({result.commit for result in results.values()}),
        "cell_hardware": sorted({result.hardware for result in results.values()}),
        "date": max((result.date[:10] for result in results.values()), default=""),
        "cells": len(ran),
        "cpu_minutes": round(sum(result.cpu_seconds for result in ran.values()) / 60, 1),
        "references": attack_free,
        "rows": [_row(row) for row in rows],
        "controls": [{"attack": each.attack, "ratio": _number(each.ratio), "void": each.void} for each in held],
        "compared": {
            rule: {attack: _numbers(asdict(measured)) for attack, measured in found.items()}
            for rule, found in compared(results).items()
        },
        "below_unigram": learned,
        "differ_without_the_gate_acting": differ,
        "holds": complete
        and learned
        and not differ
        and all(row.holds for row in rows)
        and not any(each.void for each in held),
    }


def _learned(results: Mapping[Cell, Result], reference: Mapping[str, Any]) -> bool:
    """Whether the attack-free loss is below the unigram model's."""
    loss = baseline(results, Cell(reference["rule"], reference["gate"], NONE, reference["seed"]))
    return reference["unigram"] is not None and loss < reference["unigram"]


def write(document: Mapping[str, Any], results: Mapping[Cell, Result], common: Sequence[str]) -> None:
    """Write the tables between the markers of the page."""
    rows = judge(results, NAMES)
    about = {
        "flags": " ".join(common),
        "before": str(BEFORE),
        "commits": ", ".join(document["cell_commits"]),
        "hardware": "; ".join(document["cell_hardware"]),
        "minutes": f"{document['cpu_minutes']:.0f}",
        "date": document["date"],
    }
    section = page.section(rows, compared(results), document["references"], _controls(results), about)
    PAGE.write_text(page.insert(PAGE.read_text(), section))


def _print(
    document: Mapping[str, Any],
    results: Mapping[Cell, Result],
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    """Print the numbers as JSON, or as tables."""
    if arguments.json:
        print(json.dumps(document, indent=2))
        return
    rows = [row for row in judge(results, NAMES) if row.seeds or row.bare]
    lines = [*page.table(rows), "", *page.controls(_controls(results)), "", *page.comparison(compared(results))]
    lines += ["", *page.attack_free(document["references"])]
    print("\n".join(lines))
    console.print(f"{document['cpu_minutes']} CPU minutes; holds: {document['holds']}", highlight=False)


def _controls(results: Mapping[Cell, Result]) -> list[Control]:
    found = [control(results, attack) for attack in CONTROLS]
    return [each for each in found if each is not None]


def _row(row: Row) -> dict[str, Any]:
    return {
        "attack": row.attack,
        "limit": row.limit,
        "worst": _number(row.worst),
        "worst_to_alone": _number(row.alone),
        "share": row.share,
        "cosine": row.cosine,
        "seeds": [_numbers(asdict(each)) for each in row.seeds],
        "bare": _numbers(asdict(row.bare)) if row.bare else None,
        "holds": row.holds,
        "verdict": row.verdict,
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> Any:  # noqa: ANN401  (any value of the document)
    """The value, or None for a number that JSON cannot hold, such as the loss of a diverged run."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
