"""Strangers who lie: what three of twelve miners can do to the model, attack by attack.

    .venv/bin/python benchmarks/robustness.py [--jobs 2] [--only TEXT ...] [--quick] [--json]

Trains `nano` on the embedded text again and again, each time with another attack, rule or seed: many runs of
`fedgpt2 simulate`, those of a seed after the same rounds without liars. Each finished one is a file in the state
folder, so an interruption loses only those that run. When all are there it writes
benchmarks/results/robustness-DATE.json, the tables in docs/aggregation.md and two pictures.

It holds if, for the default rule behind its gate and for every seed, each attack's final held-out loss is within its
limit of the attack-free one, the attack-free loss is below a unigram's, and each positive control hurts a plain mean.
The exit code is 1 if it does not, or if a cell failed.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import record
from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.errors import FedGPT2Error
from fedgpt2.simulate.attacks.registry import NAMES
from trials import page, plots
from trials.cells import ABSENT, CONTROLS, NONE, SEEDS, Cell, plan, quick
from trials.progress import watched
from trials.running import Result, Store
from trials.starts import Starts
from trials.twins import completed, differing
from trials.verdicts import Control, Row, baseline, compared, control, judge

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
STATE = ROOT / "benchmarks" / "results" / "robustness-cells"
SCRATCH = ROOT / "runs" / "robustness"
BEFORE, ROUNDS = 56, 72  # rounds in which nobody lies, and all
COMMON = (
    *("--model.preset", "nano", "--data.source", "sample", "--device", "cpu", "--run.threads", "1"),
    *("--data.windows", "1", "--run.eval_every", "8", "--run.eval_windows", "32", "--run.score_windows", "2"),
    *("--optimizer.lr", "3e-3", "--optimizer.min_lr", "1e-3", "--optimizer.warmup", "2", "--optimizer.beta1", "0.7"),
    *("--optimizer.horizon", str(ROUNDS), "--ranking.rule", "off"),
    # else the bound of admission refuses the large ones before the rule sees them
    *("--limits.gradient_norm", "1e12"),
)


def main() -> int:
    """Run what is missing, judge, write; 0 when everything holds, 130 when interrupted."""
    arguments = _parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's shell may have had it ignored
    console = Console(stderr=True)
    try:
        before, rounds = (2, 4) if arguments.quick else (BEFORE, ROUNDS)
        common = (*COMMON, "--rounds", str(rounds))
        cells = quick(NAMES) if arguments.quick else plan(NAMES)
        chosen = [cell for cell in cells if not arguments.only or any(text in cell.name for text in arguments.only)]
        store = Store.open(arguments.state, (*common, "after", str(before)))
        starts = Starts(SCRATCH / store.folder.name, COMMON, before)
        failed = watched(chosen, common, store, starts, arguments.jobs, console)
        results = completed(store.finished(cells), cells)
        document = summary(results, common)
        whole = len(results) == len(cells) and not arguments.quick
        _say(document, results, arguments, console)
        if whole:
            for path in write(document, results, common):
                console.print(f"wrote {path.relative_to(ROOT)}", highlight=False)
        else:
            console.print(f"{len(results)} of {len(cells)} cells are there; nothing was written", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted; start again to go on", highlight=False)
        return 130
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for failure in failed:
        console.print(f"{failure.name}: {failure.said}", style="red", highlight=False)
    broken = [row for row in judge(results, NAMES) if row.worst > row.limit]  # of those chosen, if not all are there
    return 1 if failed or broken or (whole and not document["holds"]) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="run only cells with this in their name")
    parser.add_argument("--quick", action="store_true", help="a few cells of four rounds, to see that everything works")
    parser.add_argument("--state", type=Path, default=STATE, help="folder of finished cells")
    parser.add_argument("--json", action="store_true", help="print the record")
    return parser.parse_args()


def references(results: Mapping[Cell, Result]) -> list[dict[str, Any]]:
    """Attack-free losses of each rule, gate and seed that has both, beside the unigram's."""
    found = []
    for cell, result in results.items():
        alone = Cell(cell.rule, cell.gate, ABSENT, cell.seed)
        if cell.attack == NONE and alone in results:
            losses = {"none": result.final_val_loss, "absent": results[alone].final_val_loss}
            which = {"rule": cell.rule, "gate": cell.gate, "seed": cell.seed}
            found.append({**which, "unigram": result.unigram_loss, **losses})
    return found


def summary(results: Mapping[Cell, Result], common: Sequence[str]) -> dict[str, Any]:
    """The record: every number the page shows."""
    rows = judge(results, NAMES)
    held = _controls(results)
    attack_free = references(results)
    judged = [each for each in attack_free if each["rule"] == "default"]
    learned = all(_learned(results, each) for each in judged)
    differ = differing(results)
    ran = {result.name: result for result in results.values()}  # a twin counts once
    complete = len(held) == len(CONTROLS) and len(judged) == len(SEEDS) + 1
    return {
        "bench": "robustness",
        "commit": commit(),
        "hardware": hardware(),
        "settings": {"flags": list(common), "seeds": list(SEEDS), "rounds_without_liars": BEFORE},
        "cell_commits": sorted({result.commit for result in results.values()}),
        "cell_hardware": sorted({result.hardware for result in results.values()}),
        "cells": len(ran),
        "cpu_minutes": round(sum(result.cpu_seconds for result in ran.values()) / 60, 1),
        "references": attack_free,
        "rows": [_row(row) for row in rows],
        "controls": [{"attack": each.attack, "ratio": _number(each.ratio), "void": each.void} for each in held],
        "compared": {
            rule: {attack: _numbers(asdict(measured)) for attack, measured in found.items()}
            for rule, found in compared(results).items()
        },
        "curves": {name: points for name, points in _curves(results).items()},
        "below_unigram": learned,
        "differ_without_the_gate_acting": differ,
        "holds": complete
        and learned
        and not differ
        and all(row.holds for row in rows)
        and not any(each.void for each in held),
    }


def _learned(results: Mapping[Cell, Result], reference: Mapping[str, Any]) -> bool:
    """Whether the attack-free loss that is judged by is below the unigram's."""
    loss = baseline(results, Cell(reference["rule"], reference["gate"], NONE, reference["seed"]))
    return reference["unigram"] is not None and loss < reference["unigram"]


def write(document: Mapping[str, Any], results: Mapping[Cell, Result], common: Sequence[str]) -> list[Path]:
    """The record, the tables and the pictures; where they lie."""
    now = datetime.now(UTC)
    log = f"resumable: {document['cells']} cells, one thread each, of commits {', '.join(document['cell_commits'])}"
    entry = {"date": now.isoformat(timespec="seconds"), "command": "python benchmarks/robustness.py", "log": log}
    written = record.write("robustness", {**entry, **document}, now)
    rows = judge(results, NAMES)
    text = DOCS / "aggregation.md"
    text.write_text(page.woven(text.read_text(), _section(document, results, rows, common, f"{now:%Y-%m-%d}")))
    unigrams = [each["unigram"] for each in document["references"] if each["seed"] == SEEDS[0]]
    pictures = {
        DOCS / "robustness-attacks.svg": plots.dots(rows),
        DOCS / "robustness-curves.svg": plots.curves(document["curves"], unigrams[0] if unigrams else None),
    }
    for path, picture in pictures.items():
        path.write_text(picture)
    return [written, text, *pictures]


def _section(
    document: Mapping[str, Any],
    results: Mapping[Cell, Result],
    rows: Sequence[Row],
    common: Sequence[str],
    date: str,
) -> str:
    about = {
        "flags": " ".join(common),
        "before": str(BEFORE),
        "commits": ", ".join(document["cell_commits"]),
        "hardware": "; ".join(document["cell_hardware"]),
        "minutes": f"{document['cpu_minutes']:.0f}",
        "date": date,
    }
    return page.section(rows, compared(results), document["references"], _controls(results), about)


def _say(
    document: Mapping[str, Any],
    results: Mapping[Cell, Result],
    arguments: argparse.Namespace,
    console: Console,
) -> None:
    """Show what is there: the record as JSON on stdout, or the tables."""
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


def _curves(results: Mapping[Cell, Result]) -> dict[str, list[tuple[float, float]]]:
    """Held-out loss over rounds: default and mean, under sign flip and without it."""
    wanted = {
        "default, sign flip": Cell("default", True, "sign_flip", SEEDS[0]),
        "mean, sign flip": Cell("mean", False, "sign_flip", SEEDS[0]),
        "default, nobody lies": Cell("default", True, NONE, SEEDS[0]),
        "mean, nobody lies": Cell("mean", False, NONE, SEEDS[0]),
    }
    return {name: points(results[cell]) for name, cell in wanted.items() if cell in results}


def points(result: Result) -> list[tuple[float, float]]:
    """Rounds and held-out losses of a run."""
    measured = [(row["round"], row["val_loss"]) for row in result.rounds]
    return [(float(round), float(loss)) for round, loss in measured if loss is not None]


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


def _number(value: Any) -> Any:  # noqa: ANN401  (whatever a record holds)
    """The value, or None for a number that JSON has no word for: the loss of a run that diverged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
