"""Train `nano` for ten minutes: a validator and four miners on the embedded text, over loopback.

    .venv/bin/python benchmarks/learns.py --seconds 600 --json

It holds if the held-out loss ends at least 0.5 nats a token below that of a unigram model of the assigned text, on the
same held-out windows: the model has then learned more than the frequencies of tokens.
"""

import argparse
import json
import sys
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedgpt2.cli.bench.federation import Stay, federation
from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.config import Data, Model, Run
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import FedGPT2Error

MINERS = 4
MARGIN = 0.5  # required nats a token below the unigram model
PRESET, WINDOWS, SPAN, EVAL_WINDOWS = "nano", 4, 4, 64
VALIDATOR = (
    *("--model.preset", PRESET, "--data.windows", str(WINDOWS), "--data.span", str(SPAN), "--run.threads", "1"),
    *("--optimizer.lr", "3e-3", "--optimizer.min_lr", "3e-4", "--optimizer.warmup", "10"),
    *("--run.eval_every", "20", "--run.eval_windows", str(EVAL_WINDOWS), "--checkpoint.every", "20"),
)


def main() -> int:
    """Train, print; 0 when it learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--horizon", type=int, default=600, help="rounds of the learning rate's cosine")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder, federation(Path(folder), MINERS, "--run.threads", "1") as crowd:
            length = ("--optimizer.horizon", str(arguments.horizon))
            stay = crowd.train("learns", *VALIDATOR, *length, seconds=arguments.seconds)
            document = summary(stay, unigram(crowd.run("learns")))
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        for point in document["curve"]:
            print("round {round:5}  {seconds:6.1f} s  {tokens:9,} tokens  held-out loss {val_loss:.4f}".format(**point))
        print(f"unigram {document['unigram_loss']:.4f}; {document['below_unigram']:.3f} below it, {MARGIN} asked for")
    return 0 if document["holds"] else 1


def unigram(run: Path) -> float:
    """Held-out loss of a unigram model of the assigned text, on the run's held-out windows."""
    corpus = Corpus.open(Data(source="sample", windows=WINDOWS, span=SPAN), Model(PRESET).shape.block_size, Run().seed)
    facts = json.loads((run / "config.json").read_text())
    if corpus.manifest.digest() != facts["manifest_digest"]:
        raise FedGPT2Error("the run assigned other text than this recipe")
    return corpus.unigram(corpus.report(bytes.fromhex((run / "evaluation.key").read_text()), EVAL_WINDOWS))


def summary(stay: Stay, unigram_loss: float) -> dict[str, Any]:
    """The loss curve and the margin; seconds are those of the rounds."""
    seconds = accumulate(row["seconds"]["total"] for row in stay.rounds)
    tokens = accumulate(row["tokens"] for row in stay.rounds)
    curve = [
        {"round": row["round"], "seconds": round(spent, 1), "tokens": seen, "val_loss": row["val_loss"]}
        for row, spent, seen in zip(stay.rounds, seconds, tokens, strict=True)
        if row["val_loss"] is not None
    ]
    if not curve:
        raise FedGPT2Error(f"{len(stay.rounds)} rounds and no held-out loss; give it more --seconds")
    below = unigram_loss - curve[-1]["val_loss"]
    return {
        "bench": "learns",
        "commit": commit(),
        "hardware": hardware(),
        "settings": {"preset": PRESET, "miners": MINERS, "validator": list(VALIDATOR)},
        "rounds": len(stay.rounds),
        "unigram_loss": unigram_loss,
        "final_val_loss": curve[-1]["val_loss"],
        "below_unigram": below,
        "holds": below >= MARGIN,
        "curve": curve,
    }


if __name__ == "__main__":
    sys.exit(main())
