"""Draw the pictures of README.md and docs/ from recorded data.

    python -m pip install -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/draw.py robustness [--table FILE]     docs/robustness-attacks.svg, robustness-curves.svg
    .venv/bin/python benchmarks/draw.py run RUN_DIR OUT.svg           held-out loss and ratings of one run

The picture of a run is read from its rounds.jsonl; the unigram model's loss is computed from the run's own text.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fedgpt2.config import Data
from fedgpt2.data.corpus import Corpus
from fedgpt2.simulate.attacks.registry import NAMES
from trials.cells import NONE, SEEDS, Cell, plan
from trials.table import Result, ResultTable
from trials.twins import completed
from trials.verdicts import LIMIT, LIMIT_ADAPTIVE, Row, judge

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "results" / "robustness.jsonl"
BLUE, PALE_BLUE, RED, PALE_RED, AMBER, GREY = "#1f4e79", "#9bb7d4", "#b03a2e", "#e0a49c", "#c98a1b", "#888888"
STYLE = {
    "font.size": 9,
    "svg.hashsalt": "fedgpt2",  # the same data gives the same file
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LOWEST, HIGHEST = -1.0, 8.0  # percent; values beyond are drawn at the edge

Line = Mapping[str, Any]  # of rounds.jsonl


def main() -> int:
    """Draw what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    robustness = kinds.add_parser("robustness", help="the two pictures of docs/aggregation.md")
    robustness.add_argument("--table", type=Path, default=TABLE)
    run = kinds.add_parser("run", help="held-out loss and ratings of one run")
    run.add_argument("run", type=Path)
    run.add_argument("out", type=Path)
    arguments = parser.parse_args()
    mpl.rcParams.update(STYLE)
    if arguments.kind == "run":
        draw_run(arguments.run, arguments.out)
    else:
        results = ResultTable.read(arguments.table).finished(plan(NAMES))
        results = completed(results, plan(NAMES))
        draw_attacks([row for row in judge(results, NAMES) if row.seeds], ROOT / "docs" / "robustness-attacks.svg")
        draw_curves(results, ROOT / "docs" / "robustness-curves.svg")
    return 0


def draw_attacks(rows: Sequence[Row], out: Path) -> None:
    """Final loss of each attack over the attack-free loss: a dot a seed, a ring without the gate, and the limits."""
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.19 * len(rows)), layout="constrained")
    gated = [(_excess(each.ratio), y, each.ratio <= row.limit) for y, row in enumerate(rows) for each in row.seeds]
    bare = [(_excess(row.bare.ratio), y) for y, row in enumerate(rows) if row.bare]
    for colour, label, holds in ((BLUE, "a seed, with the gate", True), (RED, "beyond its limit", False)):
        points = [(x, y) for x, y, within in gated if within == holds]
        if points:
            axes.plot(*zip(*points, strict=True), "o", ms=5, color=colour, label=label)
    if bare:
        axes.plot(*zip(*bare, strict=True), "o", ms=5, mfc="none", color=GREY, zorder=1, label="without the gate")
    axes.axvline(_excess(LIMIT), color=RED, lw=1, ls="--", label="limit of fixed attacks")
    axes.axvline(_excess(LIMIT_ADAPTIVE), color=AMBER, lw=1, ls="--", label="limit of adaptive attacks")
    axes.axvline(0.0, color=GREY, lw=0.8)
    axes.set_yticks(range(len(rows)), [row.attack for row in rows], fontsize=7)
    axes.set(xlim=(LOWEST - 0.3, HIGHEST + 0.3), ylim=(len(rows), -1))
    axes.set_xlabel("final held-out loss above the attack-free loss, percent")
    axes.grid(axis="y", color="#eeeeee", lw=0.8)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    _save(figure, out)


def _excess(ratio: float) -> float:
    """A ratio of losses as percent above one, within the axis."""
    return min(max(100 * (ratio - 1), LOWEST), HIGHEST) if math.isfinite(ratio) else HIGHEST


def draw_curves(results: Mapping[Cell, Result], out: Path) -> None:
    """Held-out loss over the attacked rounds: default rule and mean, under sign flip and without an attack."""
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    cells = {
        "default, sign flip": (Cell("default", True, "sign_flip", SEEDS[0]), BLUE),
        "mean, sign flip": (Cell("mean", False, "sign_flip", SEEDS[0]), RED),
        "default, no attack": (Cell("default", True, NONE, SEEDS[0]), PALE_BLUE),
        "mean, no attack": (Cell("mean", False, NONE, SEEDS[0]), PALE_RED),
    }
    for name, (cell, colour) in cells.items():
        points = [(row["round"], row["val_loss"]) for row in results[cell].rounds if row["val_loss"] is not None]
        axes.plot(*zip(*points, strict=True), color=colour, lw=2, marker="o", ms=4, label=name)
    unigram = results[cells["default, no attack"][0]].unigram_loss
    if unigram is not None:
        axes.axhline(unigram, color="#222222", lw=1, ls="--", label=f"unigram model, {unigram:.2f}")
    axes.set(xlabel="round", ylabel="held-out loss, nats a token")
    axes.legend(frameon=False)
    _save(figure, out)


def draw_run(run: Path, out: Path) -> None:
    """Held-out loss over tokens, and each miner's rating over rounds."""
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained")
    _losses(left, lines, _unigram(run))
    _ratings(right, lines)
    _save(figure, out)


def _unigram(run: Path) -> float | None:
    facts = json.loads((run / "config.json").read_text())
    if facts["settings"]["data"]["source"] != "sample":
        return None
    corpus = Corpus.open(Data(**facts["settings"]["data"]), facts["model"]["block_size"], facts["seed"])
    key = bytes.fromhex((run / "evaluation.key").read_text())
    return corpus.unigram(corpus.report(key, facts["settings"]["run"]["eval_windows"]))


def _losses(axes: Axes, lines: Sequence[Line], unigram: float | None) -> None:
    tokens, total = [], 0
    for line in lines:
        total += line["tokens"]
        tokens.append(total / 1000)
    axes.plot(
        tokens, [line["train_loss"] for line in lines], color=PALE_BLUE, lw=1, label="scoring windows, each round"
    )
    held = [(at, line["val_loss"]) for at, line in zip(tokens, lines, strict=True) if line["val_loss"] is not None]
    if "initial_val_loss" in lines[0]:
        held.insert(0, (0.0, lines[0]["initial_val_loss"]))
    axes.plot(*zip(*held, strict=True), color=BLUE, lw=2, marker="o", ms=3, label="held-out loss")
    if unigram is not None:
        axes.axhline(unigram, color=RED, lw=1, ls="--", label=f"unigram model of the same text, {unigram:.2f}")
    axes.set(xlabel="thousand tokens trained on", ylabel="loss, nats a token")
    axes.legend(frameon=False)


def _ratings(axes: Axes, lines: Sequence[Line]) -> None:
    """Each miner's rating with its deviation, in the order of the last ranking."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        for miner in line["miners"]:
            rounds.setdefault(miner["axon"], []).append({"round": line["round"], **miner})
    for seen in sorted(rounds.values(), key=lambda seen: seen[-1]["rank"] or len(rounds)):
        statuses = Counter(each["status"] for each in seen)
        rated = [each for each in seen if each["rating"] is not None]
        at, rating, sigma = ([each[name] for each in rated] for name in ("round", "rating", "sigma"))
        label = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        colour = RED if statuses["refused"] else BLUE
        axes.plot(at, rating, color=colour, lw=1.5, label=f"{seen[-1]['rank']}: {label}", alpha=0.9)
        low, high = ([r + sign * s for r, s in zip(rating, sigma, strict=True)] for sign in (-1, 1))
        axes.fill_between(at, low, high, color=colour, alpha=0.08, lw=0)
    axes.set(xlabel="rounds", ylabel="rating, ± one deviation")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)


def _save(figure: Any, out: Path) -> None:  # noqa: ANN401  (a matplotlib figure)
    figure.savefig(out, metadata={"Date": None})
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
