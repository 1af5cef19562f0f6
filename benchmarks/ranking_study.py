"""Which score of a contribution orders honest miners well and pays liars nothing.

    .venv/bin/python benchmarks/ranking_study.py [--state DIR] [--only TEXT] [--page FILE] [--json]

Trains a small GPT-2 several times by the project's own gradient, aggregation and optimizer, and keeps the inner
products of all that was, or could have been, sent in each round (one file a training in the state folder, so an
interruption loses only the one that runs). Every score, attack and rating is then worked out from those, in minutes.
When all are there it writes benchmarks/results/ranking-study-DATE.json and puts its tables into FILE between markers.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import record
from credit.collect import Recipe, collect
from credit.scores import Evidence
from credit.study import BEGIN, END, answers, page
from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.errors import FedGPT2Error
from fedgpt2.model.hardware import prepare

SEEDS = range(1, 13)
RECIPES = (
    *(Recipe("adamw", seed, lr=1e-3) for seed in SEEDS),
    *(Recipe("sgd", seed, lr=0.2) for seed in SEEDS),
)
TITLES = {"nano-4096-adamw-0.001": "AdamW, lr 1e-3", "nano-4096-sgd-0.2": "SGD, lr 0.2"}


def main() -> int:
    """Train what is missing, judge, write."""
    arguments = _parse()
    prepare("cpu", 1)
    try:
        chosen = [recipe for recipe in RECIPES if arguments.only in recipe.name]
        paths = {recipe: collect(recipe, arguments.state) for recipe in chosen}
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.only:
        print("\n".join(str(path) for path in paths.values()))
        return 0
    document = judged(paths)
    kept = record.write("ranking-study", document, datetime.now(UTC))
    tables = page(document["groups"], TITLES)
    if arguments.page:
        weave(arguments.page, tables)
    print(json.dumps(document, indent=2) if arguments.json else "\n".join([*tables, "", str(kept)]))
    return 0


def judged(paths: Mapping[Recipe, Path]) -> dict[str, Any]:
    """The record of all groups of trainings."""
    groups: dict[str, list[Evidence]] = {}
    for recipe, path in paths.items():
        groups.setdefault(recipe.group, []).append(Evidence.load(path))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(answers, groups.values()))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/ranking_study.py",
        "log": "machine shared with other work; nothing here is a time",
        "bench": "ranking-study",
        "commit": commit(),
        "hardware": hardware(),
        "groups": dict(zip(groups, found, strict=True)),
    }


def weave(path: Path, lines: Sequence[str]) -> None:
    """Put `lines` between the page's markers. Raises ValueError for a page without them."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} … {END}")
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("runs/ranking-study"), help="folder of finished trainings")
    parser.add_argument("--only", default="", help="train only those whose name holds this, and judge nothing")
    parser.add_argument("--page", type=Path, help="Markdown file with markers for the tables")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
