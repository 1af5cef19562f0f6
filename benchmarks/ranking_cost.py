"""Measure what ranking costs a validator: CPU-seconds of a round's ranking over those of the miners in that round.

    .venv/bin/python benchmarks/ranking_cost.py [--model nano small] [--miners 1 4 16] [--tokens 2048] [--json]

`ranking` is all that a round computes for its ranking, with the package's defaults, on a validator's own training state
after two steps and on random contributions: the scoring gradient, inner products and audits; the rating takes
milliseconds and is left out. `miner` is one gradient on the tokens assigned to a miner, computed as the miner program
does. Both run on one thread and are counted in CPU-seconds, so neither waiting nor spinning nor other programs count.

It holds if ranking takes at most LIMIT of the CPU-seconds of all miners of the round, for each model and number of
miners. The exit code is 1 if it does not.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from fedgpt2.cli.bench.report import Row, interleave, report
from fedgpt2.cli.bench.worker import peak_mb
from fedgpt2.config import Axons, Gradient, Model, ValidatorConfig, Wallet
from fedgpt2.data.tokens import Tokens
from fedgpt2.gradient.exact import Exact
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.hardware import prepare
from fedgpt2.ranking.budget import budget, window_shape
from fedgpt2.ranking.inner_products import inner, measure_products
from fedgpt2.types import Hotkey, ModelShape
from fedgpt2.validator.training import Training

LIMIT = 0.15
_LR = 1e-4


class Round:
    """One round of a validator: its training state and random contributions of `miners` miners."""

    def __init__(self, model: str, miners: int, tokens: int) -> None:
        wallet, axons = Wallet("validator", "default", "."), Axons(addresses=("127.0.0.1:1",))
        config = ValidatorConfig(wallet=wallet, axons=axons, model=Model(model))
        self.shape, self.budget = config.model.shape, budget(config.ranking, [tokens] * miners)
        self.training = Training(config, prepare("cpu", 1))
        d, generator = self.training.weights.flat.numel(), torch.Generator().manual_seed(0)
        self.rows = {Hotkey(f"miner-{i:02}"): torch.randn(d, generator=generator) for i in range(miners)}
        for _ in range(2):  # so that recent aggregates and a moment exist
            self.training.aggregate(self._form)
            self.training.step(_LR)

    def rank(self) -> None:
        """Compute a round's ranking."""
        if not self.budget.gradient:
            return
        gradient = self.training.scoring_gradient(self._windows(self.budget.gradient))
        measure_products(list(self.rows), list(self.rows.values()), self.training.baseline(), gradient)
        for row in list(self.rows.values())[: self.budget.audits]:
            inner([self.training.scoring_gradient(self._windows(self.budget.audit)), row], 1)

    def _form(self, out: Tensor) -> None:
        out.copy_(next(iter(self.rows.values())))

    def _windows(self, tokens: int) -> Tokens:
        count, length = window_shape(tokens, self.shape.block_size)
        return random_windows(self.shape, count * self.shape.block_size)[:, : length + 1]


class Miner:
    """One miner's computing in a round."""

    def __init__(self, model: str, tokens: int) -> None:
        shape = Model(model).shape
        self.model, self.windows = GPT2(shape), random_windows(shape, tokens)
        self.exact, self.out = Exact.build(Gradient(), torch.device("cpu")), self.model.weights.empty_like()

    def compute(self) -> None:
        """Compute the gradient of a round."""
        self.exact(self.model, self.windows, out=self.out, stop=threading.Event())


def random_windows(shape: ModelShape, tokens: int) -> Tokens:
    """As few windows as hold `tokens` tokens."""
    size = (-(-tokens // shape.block_size), shape.block_size + 1)
    return np.random.default_rng(0).integers(0, shape.vocab_size, size, np.uint16)


def main() -> int:
    """Measure, print; 0 when every share is within the limit."""
    arguments = _parse()
    prepare("cpu", 1)
    rows = [row for model in arguments.model for row in shares(model, arguments)]
    note = f"ranking over its miners' computing, CPU-seconds, {arguments.tokens} tokens a miner; limit {LIMIT}"
    report("ranking-cost", rows, as_json=arguments.json, notes=[note])
    return 0 if all(float(row.extra["share"]) <= LIMIT for row in rows) else 1


def shares(model: str, arguments: argparse.Namespace) -> list[Row]:
    """A row for each number of miners."""
    miner, rows = Miner(model, arguments.tokens), []
    for n in arguments.miners:
        round_ = Round(model, n, arguments.tokens)
        turns = {"ranking": cpu_seconds(round_.rank), "miner": cpu_seconds(miner.compute)}
        times = interleave(turns, arguments.repeats)
        one = median(times["miner"])
        spent = round_.budget.gradient + round_.budget.audits * round_.budget.audit
        extra = {"tokens": spent, "miner": round(one, 3), "share": round(median(times["ranking"]) / (n * one), 4)}
        rows.append(Row(f"{model} {n}", times["ranking"], peak_mb(), extra, group=f"{model} {n}"))
    return rows


def cpu_seconds(call: Callable[[], None]) -> Callable[[], float]:
    """`call`, returning the CPU-seconds it took."""

    def run() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    return run


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", nargs="+", default=["nano", "small"], help="presets")
    parser.add_argument("--miners", nargs="+", type=int, default=[1, 4, 16], help="miners of the round")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens assigned to each miner")
    parser.add_argument("--repeats", type=int, default=3, help="measured turns")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
