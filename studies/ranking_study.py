"""Find the score that orders honest miners well and pays attacks nothing.

    .venv/bin/python studies/ranking_study.py [--state DIR] [--seeds 12] [--only TEXT] [--page FILE] [--json]
    .venv/bin/python studies/ranking_study.py --shipped [--seeds 12] ...     only the table of the shipped rule

Trains a small GPT-2 24 times (12 seeds, two optimizers) with the project's gradient, aggregation and optimizer, and
records the inner products of all vectors that a miner could send in each round: one file a training, so an interruption
loses only the running one. All scores, attacks and ratings are then computed from the records. When all trainings are
recorded it writes studies/results/ranking-study-DATE.json and the tables between the markers of FILE.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.errors import FedGPT2Error
from fedgpt2.model.hardware import prepare
from scoring.scores import Evidence
from scoring.tables import BEGIN, END, answers, page, shipped_answers, shipped_page
from scoring.training import Recipe, collect

RESULTS = Path(__file__).resolve().parent / "results"
TITLES = {"nano-4096-adamw-0.001": "AdamW, lr 1e-3", "nano-4096-sgd-0.2": "SGD, lr 0.2"}


def main() -> int:
    """Train what is missing, answer the questions, write the record."""
    arguments = _parse()
    prepare("cpu", 1)
    try:
        chosen = [recipe for recipe in recipes(arguments.seeds) if arguments.only in recipe.name]
        paths = {recipe: collect(recipe, arguments.state) for recipe in chosen}
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.only:
        print("\n".join(str(path) for path in paths.values()))
        return 0
    document = study(paths, shipped_answers if arguments.shipped else answers)
    written = RESULTS / f"ranking-{'shipped' if arguments.shipped else 'study'}-{datetime.now(UTC):%Y-%m-%d}.json"
    written.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    tables = (shipped_page if arguments.shipped else page)(document["groups"], TITLES)
    if arguments.page:
        insert(arguments.page, tables)
    print(json.dumps(document, indent=2) if arguments.json else "\n".join([*tables, "", str(written)]))
    return 0


def recipes(seeds: int) -> list[Recipe]:
    """The trainings, AdamW's first."""
    settings = (("adamw", 1e-3), ("sgd", 0.2))
    return [Recipe(name, seed, lr=lr) for name, lr in settings for seed in range(1, seeds + 1)]


def study(paths: Mapping[Recipe, Path], ask: Callable[[Sequence[Evidence]], dict[str, Any]]) -> dict[str, Any]:
    """The record of all groups of trainings."""
    groups: dict[str, list[Evidence]] = {}
    for recipe, path in paths.items():
        groups.setdefault(recipe.group, []).append(Evidence.load(path))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(ask, groups.values()))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python studies/ranking_study.py",
        "log": "machine shared with other work; no number is a time",
        "bench": "ranking-study",
        "commit": commit(),
        "hardware": hardware(),
        "groups": dict(zip(groups, found, strict=True)),
    }


def insert(path: Path, lines: Sequence[str]) -> None:
    """Replace the text between the page's markers. Raises ValueError for a page without them."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} … {END}")
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("runs/ranking-study"), help="folder of recorded trainings")
    parser.add_argument("--seeds", type=int, default=12, help="trainings with each optimizer")
    parser.add_argument("--only", default="", help="only train, those with this text in their name")
    parser.add_argument("--shipped", action="store_true", help="compute only the table of the shipped rule")
    parser.add_argument("--page", type=Path, help="Markdown file with markers for the tables")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
