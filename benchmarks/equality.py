"""Compare N miners over real sockets with one big batch: plain torch on the union of their windows.

    .venv/bin/python benchmarks/equality.py --preset tiny --rounds 20 --json

For N = 1, 2 and 4 a validator and N miners (real processes, fp32 arithmetic, fp32 codec, one gradient a miner and
round, mean by assigned tokens) train from the seed's weights. The reference is one process without any of our round,
gradient, loss, aggregation or optimizer code: torch.optim over autograd of torch's own cross-entropy on all windows of
all miners at once. Both share the model's forward pass, the seed's weights and the assignment of windows.

SGD at lr 0.3 compares every parameter. AdamW compares the held-out loss: a gradient that is truly zero (the bias of the
keys: adding a constant to all scores of a query changes no softmax) is computed as rounding noise, which Adam scales to
steps of full size. The difference of parameters is printed for AdamW too.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgpt2.cli.bench.federation import Federation, federation
from fedgpt2.cli.bench.report import commit, hardware
from fedgpt2.cli.runs import open_run
from fedgpt2.config import Data, Model, Optimizer, Run
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import FedGPT2Error
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.loss import mean_loss
from fedgpt2.model.state import FlatState

SGD = Optimizer(name="sgd", lr=0.3, min_lr=0.3, warmup=0, clip=0.0)
ADAMW = Optimizer(name="adamw", lr=1e-3, min_lr=1e-3, warmup=0, clip=0.0)
SAMPLE = Data(source="sample", seq_len=64, windows=8, span=4, max_slots=4, max_pages=4)
LARGEST_DIFFERENCE = 1e-6  # of a parameter, SGD
LEAST_MOVED = 0.05  # largest movement of a parameter, below which the comparison shows nothing
LARGEST_LOSS_DIFFERENCE = 1e-4  # of the held-out loss, AdamW


@dataclass(frozen=True)
class Setting:
    """Model, rounds and text of one comparison."""

    preset: str = "tiny"
    rounds: int = 20
    data: Data = SAMPLE

    def flags(self, optimizer: Optimizer) -> Iterator[str]:
        """The validator's flags."""
        yield from ("--model.preset", self.preset, "--rounds", str(self.rounds), "--codec.gradient", "fp32")
        yield from ("--aggregation.rule", "mean", "--aggregation.gate", "false", "--ranking.rule", "off")
        yield from ("--run.eval_every", str(self.rounds), "--checkpoint.every", str(self.rounds))
        for name in ("source", "seq_len", "windows", "span", "max_slots", "max_pages"):
            yield from (f"--data.{name}", str(getattr(self.data, name)))
        for name, value in asdict(optimizer).items():
            yield from (f"--optimizer.{name}", str(value))


@dataclass(frozen=True)
class Comparison:
    """A federation and one big batch after the last round."""

    optimizer: str
    miners: int
    rounds: int
    largest_difference: float
    moved: float
    val_loss: float
    val_loss_big_batch: float

    @property
    def holds(self) -> bool:
        """Whether the two agree within the bounds above."""
        if abs(self.val_loss - self.val_loss_big_batch) > LARGEST_LOSS_DIFFERENCE:
            return False
        return self.optimizer != "sgd" or (self.largest_difference <= LARGEST_DIFFERENCE and self.moved >= LEAST_MOVED)


def compare(run: Path, setting: Setting, optimizer: Optimizer, miners: int) -> Comparison:
    """Compare a finished run with the same training in this process. Raises FedGPT2Error if a gradient is missing."""
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    check_complete(rounds, setting, miners)
    facts = json.loads((run / "config.json").read_text())
    theirs = open_run(str(run)).load_model()[0].weights.flat
    shape, seed = Model(setting.preset).shape, Run().seed
    corpus = Corpus.open(setting.data, shape.block_size, seed)
    if corpus.manifest.digest() != facts["manifest_digest"]:
        raise FedGPT2Error("the run assigned other text than this setting")
    start = initialise(shape, seed)
    ours = big_batch(start.clone(), GPT2(shape), corpus, setting, optimizer, miners)
    report = corpus.report(bytes.fromhex(facts["evaluation_key"]), facts["settings"]["run"]["eval_windows"])
    return Comparison(
        optimizer=optimizer.name,
        miners=miners,
        rounds=setting.rounds,
        largest_difference=largest(theirs - ours.flat),
        moved=largest(ours.flat - start.flat),
        val_loss=rounds[-1]["val_loss"],
        val_loss_big_batch=mean_loss(GPT2(shape, ours), report, micro_batch=8, precision="fp32"),
    )


def big_batch(
    weights: FlatState, model: GPT2, corpus: Corpus, setting: Setting, optimizer: Optimizer, miners: int
) -> FlatState:
    """Train `weights` for as many steps, each on all windows of all miners at once, in plain torch."""
    model.bind(weights, weights.empty_like())
    stepper = torch_optimizer(model, optimizer)
    for number in range(1, setting.rounds + 1):
        shares = (corpus.assign(number, slot, setting.data.windows) for slot in range(miners))
        tokens = torch.from_numpy(np.concatenate([corpus.windows(share) for share in shares]).astype(np.int64))
        stepper.zero_grad(set_to_none=False)
        logits = model.logits(model(tokens[:, :-1]))
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        stepper.step()
    return weights


def torch_optimizer(model: GPT2, optimizer: Optimizer) -> torch.optim.Optimizer:
    """torch's optimizer with the same settings; matrices decay, vectors do not."""
    if optimizer.name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=optimizer.lr)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
    )


def check_complete(rounds: Sequence[Mapping[str, Any]], setting: Setting, miners: int) -> None:
    """Raise FedGPT2Error unless every round admitted every miner's gradient and took its step."""
    if len(rounds) != setting.rounds:
        raise FedGPT2Error(f"{len(rounds)} rounds, not {setting.rounds}")
    for row in rounds:
        admitted = sum(miner["status"] == "admitted" for miner in row["miners"])
        if admitted != miners or not row["applied"]:
            raise FedGPT2Error(f"round {row['round']}: {admitted} of {miners} admitted, {row['reason']}")


def largest(values: Tensor) -> float:
    """Largest magnitude."""
    return float(values.abs().max())


def main() -> int:
    """Compare, print; 0 when all comparisons hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    setting = Setting(arguments.preset, arguments.rounds)
    torch.set_num_threads(1)
    precise = ("--gradient.precision", "fp32", "--run.threads", "1")
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), 4, *precise) as crowd:
        found = [train(crowd, setting, optimizer, n) for optimizer in (SGD, ADAMW) for n in (1, 2, 4)]
    rows = [{**asdict(one), "holds": one.holds} for one in found]
    facts = {"bench": "equality", "commit": commit(), "hardware": hardware(), "settings": asdict(setting)}
    if arguments.json:
        print(json.dumps({**facts, "rows": rows}, indent=2))
    for row in () if arguments.json else rows:
        print(
            ", ".join(f"{name} {round(value, 9) if isinstance(value, float) else value}" for name, value in row.items())
        )
    return 0 if all(one.holds for one in found) else 1


def train(crowd: Federation, setting: Setting, optimizer: Optimizer, miners: int) -> Comparison:
    """A run with the first `miners` miners, compared."""
    name = f"{optimizer.name}-{miners}"
    crowd.train(name, *setting.flags(optimizer), "--run.threads", "1", miners=miners)
    return compare(crowd.run(name), setting, optimizer, miners)


if __name__ == "__main__":
    sys.exit(main())
