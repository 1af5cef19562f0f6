"""What ranking costs a validator: CPU-seconds of a round's scoring, beside those of the passes it is counted in.

    .venv/bin/python benchmarks/ranking_cost.py [--preset small] [--miners 16] [--json]

A validator's own `Training` after two steps; contributions of random numbers in memory. `scoring` is all that a round
does for its ranking: the scoring gradient, the inner products of every contribution with it and
with what is free, the trial and the audit of each sampled miner, and the rating. `gradient` is one forward and backward
pass on `ranking.tokens`, `forward` one forward pass on as many, measured in turns with it.

It holds if scoring takes no more than gradient + 0.1 s a miner (at 124M parameters, in proportion elsewhere) + two
forwards a sampled miner. CPU-seconds of all threads, so neither waiting nor other programs count.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
import torch
from torch import Tensor

from fedgpt2.aggregation.combine import combine, terms
from fedgpt2.aggregation.gram import norm
from fedgpt2.aggregation.pipeline import Aggregate
from fedgpt2.cli.bench.report import Row, interleave, report
from fedgpt2.cli.bench.worker import peak_mb
from fedgpt2.config import Axons, Model, Ranking, ValidatorConfig, Wallet
from fedgpt2.data.tokens import Tokens
from fedgpt2.model.hardware import prepare
from fedgpt2.ranking.evidence import Audit, Evidence, MinerEvidence, Trial, rule_row
from fedgpt2.ranking.measure import measure
from fedgpt2.ranking.table import REVISION, Table, advance
from fedgpt2.validator.training import Training

A_MINER = 0.1  # CPU-seconds at D parameters
D = 124_439_808
_LR = 1e-4


class RoundView:
    """A validator's training and a round's admitted contributions."""

    def __init__(self, preset: str, miners: int) -> None:
        self.rule = Ranking()
        wallet, axons = Wallet("validator", "default", "."), Axons(addresses=("127.0.0.1:1",))
        config = ValidatorConfig(wallet=wallet, axons=axons, model=Model(preset), ranking=self.rule)
        self.training = Training(config, prepare("cpu"))
        self.d = self.training.weights.flat.numel()
        generator = torch.Generator().manual_seed(0)
        self.rows = {f"miner-{i:02}": torch.randn(self.d, generator=generator) for i in range(miners)}
        self.norms = {hotkey: norm(row) for hotkey, row in self.rows.items()}
        for _ in range(2):  # so that there are aggregates and a moment to be measured against
            self.gram = self.training.aggregate(self._form)[1].gram
            self.training.step(_LR)
        length = config.model.shape.block_size
        shape = (-(-self.rule.tokens // length), length + 1)
        self.windows: Tokens = np.random.default_rng(0).integers(0, config.model.shape.vocab_size, shape, np.uint16)
        self.tried = self.windows[: -(-self.rule.trial // length)]
        self.texts = self.windows[: -(-self.rule.audit // length), : self.rule.audit + 1]

    def gradient(self) -> None:
        """One forward and backward pass on the scoring windows."""
        self.training.scoring_gradient(self.windows)

    def forward(self) -> None:
        """One forward pass on them."""
        self.training.loss(self.windows)

    def scoring(self) -> None:
        """What validator.rank does of a round, in its order."""
        gradient = self.training.scoring_gradient(self.windows)
        products = measure(list(self.rows), list(self.rows.values()), self.training.free(), gradient, self.gram)
        sample = list(self.rows)[: self.rule.sample]
        trials = tuple(self._trial(hotkey) for hotkey in sample)  # the loss before is part of the gate's
        audits = tuple(self._audit(hotkey) for hotkey in sample)
        made = Evidence(
            round=1,
            revision=REVISION,
            applied=True,
            rule=rule_row(self.rule),
            miners=tuple(map(self._miner, self.rows)),
            products=products,
            trials=trials,
            audits=audits,
        )
        advance(Table(), made)

    def _form(self, out: Tensor) -> Aggregate:
        rows, norms = list(self.rows.values()), list(self.norms.values())
        return combine(terms("default", len(rows), 0), rows, norms, [1] * len(rows), out, 0)

    def _trial(self, hotkey: str) -> Trial:
        after = self.training.trial_of(self.rows[hotkey], self.norms[hotkey], _LR, self.tried)
        return Trial(hotkey=hotkey, before=after, after=after)

    def _audit(self, hotkey: str) -> Audit:
        before, after, length = self.training.nudge(self.rows[hotkey], self.norms[hotkey], self.texts)
        return Audit(hotkey=hotkey, windows=(0,), before=before, after=after, length=length)

    def _miner(self, hotkey: str) -> MinerEvidence:
        return MinerEvidence(hotkey=hotkey, status="admitted", norm=self.norms[hotkey], tokens=1024)


def main() -> int:
    """Measure, print; 0 when the ranking keeps to its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--miners", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scene = RoundView(arguments.preset, arguments.miners)
    work = {"scoring": scene.scoring, "gradient": scene.gradient, "forward": scene.forward}
    times = interleave({name: _counted(call) for name, call in work.items()}, arguments.repeats)
    allowed = _allowed(scene, times)
    extra = {"scoring": {"allowed": round(allowed, 3), "sampled": float(scene.rule.sample)}}
    rows = [Row(name, seconds, peak_mb(), extra.get(name, {})) for name, seconds in times.items()]
    spent = median(times["scoring"])
    told = f"{arguments.miners} miners: scoring takes {spent:.2f} CPU-seconds of {allowed:.2f} allowed"
    report("ranking-cost", rows, as_json=arguments.json, notes=[told])
    return 0 if spent <= allowed else 1


def _counted(call: Callable[[], None]) -> Callable[[], float]:
    """CPU-seconds of a call, of all threads."""

    def run() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    return run


def _allowed(scene: RoundView, times: Mapping[str, Sequence[float]]) -> float:
    passes = median(times["gradient"]) + 2 * scene.rule.sample * median(times["forward"])
    return passes + A_MINER * len(scene.rows) * scene.d / D


if __name__ == "__main__":
    sys.exit(main())
