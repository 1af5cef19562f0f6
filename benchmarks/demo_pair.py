"""Compare the demo with and without its hostile miner: same seed, same rounds, same held-out windows.

    .venv/bin/python benchmarks/demo_pair.py --rounds 30 --json

It holds if the held-out loss with the hostile miner is within 2 % of the loss without it. The demo's own loss is on
windows drawn by its secret key, other ones each time; here both final models are measured on the same windows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.cli.runs import open_run
from fedgpt2.config import Data, Model
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import FedGPT2Error
from fedgpt2.model.hardware import prepare
from fedgpt2.model.loss import mean_loss

LIMIT = 1.02
WINDOWS = 128  # held-out windows
KEY = b"demo_pair".ljust(32)  # draws them
SECONDS = 900.0  # time limit of one demo


def main() -> int:
    """Run both, measure, print; 0 when it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            runs = {name: Path(folder) / name for name in ("hostile", "honest")}
            for name, run in runs.items():
                demo(run, arguments.rounds, arguments.seed, *(("--no-hostile",) if name == "honest" else ()))
            document = summary({name: held_out(run, arguments.seed) for name, run in runs.items()}, runs["hostile"])
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    document |= {"rounds": arguments.rounds, "seed": arguments.seed}
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print(
            "held-out loss {hostile:.4f} with the hostile miner, {honest:.4f} without: {ratio:.4f}x".format(**document)
        )
    return 0 if document["holds"] else 1


def demo(run: Path, rounds: int, seed: int, *flags: str) -> None:
    """Run one demo in `run`. Raises FedGPT2Error with its last line unless it completed all rounds."""
    length = ("--rounds", str(rounds), "--seconds", str(SECONDS), "--seed", str(seed))
    command = [sys.executable, "-m", "fedgpt2", "demo", *length, "--run.dir", str(run), "--run.plain", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if rounds not in open_run(str(run)).checkpoints:
        output = (ended.stderr or ended.stdout).strip().splitlines()
        raise FedGPT2Error(f"the demo did not complete {rounds} rounds: {output[-1] if output else 'no output'}")


def held_out(run: Path, seed: int) -> float:
    """Loss of the final model, nats a token."""
    prepare("cpu")
    model, _ = open_run(str(run)).load_model()
    corpus = Corpus.open(Data(source="sample"), Model("nano").shape.block_size, seed)
    return mean_loss(model, corpus.report(KEY, WINDOWS), micro_batch=32, precision="fp32")


def summary(losses: dict[str, float], hostile: Path) -> dict[str, Any]:
    """Both losses, and the mean aggregation weight of the hostile and of an honest miner when admitted."""
    ratio = losses["hostile"] / losses["honest"]
    rows = [json.loads(line) for line in (hostile / "rounds.jsonl").read_text().splitlines()]
    refused = Counter(m["axon"] for row in rows for m in row["miners"] if m["status"] == "refused")
    ((hostile_axon, times),) = refused.most_common(1)
    admitted = [m for row in rows for m in row["miners"] if m["status"] == "admitted"]
    return {
        "bench": "demo_pair",
        "commit": commit(),
        "hardware": hardware(),
        **losses,
        "ratio": ratio,
        "refused": times,
        "weight": fmean(m["weight"] for m in admitted if m["axon"] == hostile_axon),
        "honest_weight": fmean(m["weight"] for m in admitted if m["axon"] != hostile_axon),
        "holds": ratio <= LIMIT,
    }


if __name__ == "__main__":
    sys.exit(main())
