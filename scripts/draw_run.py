"""Draw a run: held-out loss over tokens, and each miner's rating over rounds.

    python scripts/draw_run.py RUN_DIR OUT.svg        (needs matplotlib)

Everything in the picture is read from RUN_DIR/rounds.jsonl; the unigram's loss is worked out from the run's own text.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fedgpt2.config import Data
from fedgpt2.data.corpus import Corpus

Row = dict[str, object]


def main(run: Path, out: Path) -> int:
    """Write the picture of the run in `run` to `out`."""
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    mpl.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "fedgpt2", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained")
    _losses(left, rows, _unigram(run))
    _ratings(right, rows)
    figure.savefig(out, metadata={"Date": None})
    return 0


def _unigram(run: Path) -> float | None:
    facts = json.loads((run / "config.json").read_text())
    if facts["settings"]["data"]["source"] != "sample":
        return None
    corpus = Corpus.open(Data(**{**facts["settings"]["data"]}), facts["model"]["block_size"], facts["seed"])
    key = bytes.fromhex((run / "evaluation.key").read_text())
    return corpus.unigram(corpus.report(key, facts["settings"]["run"]["eval_windows"]))


def _losses(axes: Axes, rows: list[Row], unigram: float | None) -> None:
    tokens, total = [], 0
    for row in rows:
        total += int(str(row["tokens"]))
        tokens.append(total / 1000)
    axes.plot(tokens, [row["train_loss"] for row in rows], color="#9bb7d4", lw=1, label="scoring windows, each round")
    held = [(at, row["val_loss"]) for at, row in zip(tokens, rows, strict=True) if row["val_loss"] is not None]
    if "initial_val_loss" in rows[0]:
        held.insert(0, (0.0, rows[0]["initial_val_loss"]))
    axes.plot(*zip(*held, strict=True), color="#1f4e79", lw=2, marker="o", ms=3, label="held-out loss")
    if unigram is not None:
        axes.axhline(unigram, color="#b03a2e", lw=1, ls="--", label=f"unigram model of the same text, {unigram:.2f}")
    axes.set(xlabel="thousand tokens trained on", ylabel="loss, nats a token")
    axes.legend(frameon=False)


def _ratings(axes: Axes, rows: list[Row]) -> None:
    """Each miner's rating with its deviation, round by round; in the order of the last ranking."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for miner in row["miners"]:  # type: ignore[attr-defined]
            rounds.setdefault(miner["axon"], []).append({"round": row["round"], **miner})
    ranked = sorted(rounds.items(), key=lambda item: item[1][-1]["rank"] or len(rounds))
    for _, seen in ranked:
        fates = Counter(each["status"] for each in seen)
        rated = [each for each in seen if each["rating"] is not None]
        at, rating, sigma = ([each[name] for each in rated] for name in ("round", "rating", "sigma"))
        colour = "#b03a2e" if fates["refused"] else "#1f4e79"
        words = ", ".join(f"{count} {status}" for status, count in sorted(fates.items()))
        (line,) = axes.plot(at, rating, color=colour, lw=1.5, label=f"{seen[-1]['rank']}: {words}", alpha=0.9)
        low, high = ([r + sign * s for r, s in zip(rating, sigma, strict=True)] for sign in (-1, 1))
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.08, lw=0)
    axes.set(xlabel="rounds", ylabel="rating, ± one deviation")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: draw_run.py RUN_DIR OUT.svg")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
