"""Train a small GPT-2 and record, round by round, the inner products of all vectors that a miner could send.

A score that is linear in the contribution, and an attack that is a linear combination of recorded vectors, are then
numpy on small matrices: no question needs another training.

Rows of a round r, each of d parameters (letters: i miner, k lag in rounds):

    full/i       gradient of honest miner i, 16 windows          part/i    the same from its first FRACTIONS[i] windows
    noise/p      16 windows, p % of the targets exchanged        late/k    this round's text on weights k rounds old
    half/2       half of slot 15's text, weights 2 rounds old    audit/s/w w random windows of slot s, for an audit
    stale/k      what miner STALE[k] computed k rounds ago       own/k     what miner 11 computed k rounds ago
    small/k      a hostile miner's 2 windows of slot 15, k rounds ago
    agg/k        aggregate of k rounds ago; agg/0 this round's   ema/b     running mean of aggregates, decay b
    moment       the optimizer's first moment (SGD: ema/0.9)     step/k    the change of the weights k rounds ago
    sign/.. norm/.. loud/.. top/..   a hostile miner's transform of agg/1 or ema/0.9: signs, tensors of equal norm,
                 tensors by their squared norm, the largest 1 % of values
    wiener       small/0 weighted by the running mean of squared aggregates
    random       gaussian noise                                  past      running mean of scoring gradients
    score/t      scoring gradient on the first t tokens
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgpt2.aggregation.combine import byzantine
from fedgpt2.aggregation.registry import pipeline
from fedgpt2.config import PRESETS, Data, Gradient, Optimizer
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import UsageError
from fedgpt2.gradient.exact import Exact
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.hardware import arithmetic
from fedgpt2.model.loss import head_loss, mean_loss, to_tokens
from fedgpt2.model.state import FlatState
from fedgpt2.optim.schedule import learning_rate
from fedgpt2.optim.server import build
from fedgpt2.types import Digest, ModelShape
from scoring.vocabulary import Vocabulary

__all__ = [
    "AUDITED",
    "FRACTIONS",
    "HONEST",
    "HOSTILE",
    "LENGTH",
    "NOISE",
    "PRESENT",
    "SCORES",
    "SLOTS",
    "STALE",
    "WINDOWS",
    "Recipe",
    "collect",
    "graded_names",
]

HONEST, WINDOWS, SMALL = 12, 16, 2  # honest miners, windows of each, windows that a hostile miner computes on
SLOTS, HOSTILE = 16, 15  # slots a round, the hostile miner's
LENGTH = 64  # tokens of a window
AUDITED = (1, 2, 3, 8)  # windows of a slot that an audit uses
FRACTIONS = {1: 12, 2: 8, 3: 6, 4: 4, 5: 3, 6: 2, 7: 1}  # of miner i: windows of part/i
NOISE = {12: 10, 13: 25, 14: 50}  # of slot: percent of targets exchanged
STALE = {1: 8, 2: 9, 4: 10, 8: 11}  # lag: miner
OWN, LAGS, STEPS, SMALLS = (1, 2, 3, 4), 8, 4, 12
DECAYS = (0.5, 0.9, 0.99)
SCORES = (320, 512, 640, 832, 1024, 2048, 4096, 8192)  # tokens
PRESENT = 6  # graded miners a round whose true loss change is measured
TRUE_TOKENS, TRUE_STEP = 2048, 0.1  # tokens of that measurement; its step is 0.1 of the median norm
_UNRECORDED = 12  # rounds before the first recorded one: they fill every history


@dataclass(frozen=True)
class Recipe:
    """Settings of one training."""

    optimizer: str
    seed: int
    preset: str = "nano"
    vocabulary: int = 4096
    length: int = LENGTH  # tokens of a window
    rounds: int = 50  # recorded
    lr: float = 1e-3
    warmup: int = 10  # rounds of linear warm-up of the learning rate

    @property
    def group(self) -> str:
        """Name without the seed."""
        return f"{self.preset}-{self.vocabulary}-{self.optimizer}-{self.lr:g}"

    @property
    def name(self) -> str:
        """Stem of its file."""
        return f"{self.group}-seed{self.seed}"

    @property
    def shape(self) -> ModelShape:
        """The preset's shape with this vocabulary and length."""
        preset = PRESETS[self.preset]
        return ModelShape(preset.n_layer, preset.n_head, preset.n_embd, self.length, self.vocabulary)


@dataclass
class History:
    """Vectors of earlier rounds."""

    full: dict[int, deque[Tensor]] = field(default_factory=dict)  # gradients of miners 8 … 11
    weights: deque[Tensor] = field(default_factory=lambda: deque(maxlen=LAGS))
    small: deque[Tensor] = field(default_factory=lambda: deque(maxlen=SMALLS))
    aggregates: deque[Tensor] = field(default_factory=lambda: deque(maxlen=LAGS))
    steps: deque[Tensor] = field(default_factory=lambda: deque(maxlen=STEPS))
    means: dict[str, Tensor] = field(default_factory=dict)

    def mean(self, name: str, decay: float, new: Tensor) -> None:
        """Advance a running mean."""
        old = self.means.get(name, torch.zeros_like(new))
        self.means[name] = decay * old + (1.0 - decay) * new


class Training:
    """A federation in one process: 12 honest miners, the default rule, the project's optimizer."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.corpus = Corpus.open(Data(source="sample", seq_len=recipe.length, span=2), recipe.length, recipe.seed)
        self.vocabulary = Vocabulary.fit(self.corpus, recipe.vocabulary)
        self.model = GPT2(recipe.shape, initialise(recipe.shape, recipe.seed))
        self.config = Optimizer(name=recipe.optimizer, lr=recipe.lr, min_lr=recipe.lr / 10, warmup=recipe.warmup)
        self.optimizer = build(self.config, self.model.weights)
        self.exact = Exact.build(Gradient(micro_batch=32), torch.device("cpu"))
        self.rng = np.random.default_rng(recipe.seed)
        self.past = History()
        self.round = 0

    def advance(self, record: bool) -> dict[str, Any] | None:
        """Train one round; return its evidence if `record`."""
        rows = self._contributions()
        aggregate = torch.zeros_like(self.model.weights.flat)
        seed = int(self.rng.integers(2**31))
        pipeline("default")([rows[f"full/{i}"] for i in range(HONEST)], None, byzantine(HONEST, 0), aggregate, seed)
        recorded = self._evidence(rows, aggregate) if record else None
        self._step(aggregate)
        self._remember(rows)
        self.round += 1
        return recorded

    def gradient(self, windows: Tokens) -> Tensor:
        """Mean gradient over windows."""
        out = self.model.weights.empty_like()
        self.exact(self.model, windows, out=out, stop=threading.Event())
        return out.flat

    def _contributions(self) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for i in range(HONEST):
            windows = self._assigned(i)
            first = FRACTIONS.get(i, WINDOWS)
            part = full = self.gradient(windows[:first])
            if first < WINDOWS:
                rest = self.gradient(windows[first:])
                full = (part * first + rest * (WINDOWS - first)) / WINDOWS
            rows[f"full/{i}"], rows[f"part/{i}"] = full, part
        for slot, percent in NOISE.items():
            rows[f"noise/{percent}"] = self._mislabelled(self._assigned(slot), percent / 100)
        rows["small/0"] = self.gradient(self._assigned(HOSTILE)[:SMALL])
        return rows

    def _late(self) -> dict[str, Tensor]:
        """Gradients of slow miners: this round's text on the weights of k rounds ago."""
        now = self.model.weights.flat.clone()
        rows = {}
        for lag, miner in STALE.items():
            self.model.weights.flat.copy_(self.past.weights[-lag])
            rows[f"late/{lag}"] = self.gradient(self._assigned(miner))
        self.model.weights.flat.copy_(self.past.weights[-2])
        rows["half/2"] = self.gradient(self._assigned(HOSTILE)[: WINDOWS // 2])
        self.model.weights.flat.copy_(now)
        return rows

    def _audits(self) -> dict[str, Tensor]:
        """Gradients on the first windows of a random order of each slot's, as audits draw them."""
        rows = {}
        for slot in range(SLOTS):
            windows = self._assigned(slot)[self.rng.permutation(WINDOWS)]
            for count, mean in self._growing(windows, AUDITED).items():
                rows[f"audit/{slot}/{count}"] = mean
        return rows

    def _assigned(self, slot: int) -> Tokens:
        assignment = self.corpus.assign(self.round, slot, WINDOWS)
        windows = self.vocabulary(self.corpus.windows(assignment))
        if len(windows) != WINDOWS:
            raise ValueError(f"slot {slot} has {len(windows)} windows in round {self.round}")
        return windows

    def _mislabelled(self, windows: Tokens, share: float) -> Tensor:
        """Gradient with `share` of the targets replaced by random targets of the same text."""
        tokens = to_tokens(windows, torch.device("cpu"))
        targets = tokens[:, 1:].clone()
        wrong = torch.from_numpy(self.rng.random(targets.shape) < share)
        drawn = torch.from_numpy(self.rng.integers(targets.numel(), size=int(wrong.sum())))
        targets[wrong] = tokens[:, 1:].flatten()[drawn]
        out = self.model.weights.empty_like()
        self.model.bind(self.model.weights, out)
        with arithmetic(self.model.device, self.exact.precision):
            hidden = self.model(tokens[:, :-1])
        dtype = torch.bfloat16 if self.exact.precision == "bf16" else torch.float32
        loss = head_loss(hidden, self.model.wte.weight, targets, divisor=targets.numel(), dtype=dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        self.model.bind(self.model.weights)
        return out.flat

    def _evidence(self, rows: dict[str, Tensor], aggregate: Tensor) -> dict[str, Any]:
        kept = {name: row for name, row in rows.items() if not name.startswith("part/") or int(name[5:]) in FRACTIONS}
        kept |= self._late() | self._audits() | self._histories() | {"agg/0": aggregate}
        kept |= self._transformed(rows["small/0"])
        windows = self._scoring()
        kept |= self._scores(windows)
        self.past.mean("past", 0.9, kept[f"score/{TRUE_TOKENS}"])
        graded = graded_names()
        present = sorted(int(i) for i in self.rng.choice(len(graded), PRESENT, replace=False))
        changes = self._true_changes([kept[graded[i]] for i in present], windows)
        names, gram = inner_products(kept)
        return {"names": names, "gram": gram, "present": present, **changes}

    def _histories(self) -> dict[str, Tensor]:
        past = self.past
        rows = {f"stale/{lag}": past.full[miner][-lag] for lag, miner in STALE.items()}
        rows |= {f"own/{lag}": past.full[STALE[8]][-lag] for lag in OWN}
        rows |= {f"small/{lag}": past.small[-lag] for lag in range(1, SMALLS)}
        rows |= {f"agg/{lag}": past.aggregates[-lag] for lag in range(1, LAGS + 1)}
        rows |= {f"step/{lag}": past.steps[-lag] for lag in range(1, STEPS + 1)}
        rows |= {f"ema/{decay}": past.means[f"ema/{decay}"] for decay in DECAYS}
        moments = self.optimizer.tensors()
        rows["moment"] = moments["exp_avg"].clone() if "exp_avg" in moments else past.means["ema/0.9"]
        rows["past"] = past.means.get("past", torch.zeros_like(rows["moment"]))
        return rows

    def _transformed(self, small: Tensor) -> dict[str, Tensor]:
        last, mean = self.past.aggregates[-1], self.past.means["ema/0.9"]
        second = self.past.means["second"]
        gaussian = torch.from_numpy(self.rng.standard_normal(len(last), dtype=np.float32))
        return {
            "sign/1": last.sign(),
            "sign/ema": mean.sign(),
            "norm/1": self._by_tensor(last, lambda norm: 1.0 / max(norm, 1e-12)),
            "loud/1": self._by_tensor(last, lambda norm: norm),
            "top/1": torch.where(last.abs() >= last.abs().kthvalue(int(0.99 * len(last))).values, last, 0.0),
            "wiener": small * second / (second + second.mean()),
            "random": gaussian * last.norm() / gaussian.norm(),
        }

    def _by_tensor(self, row: Tensor, factor: Any) -> Tensor:  # noqa: ANN401
        scaled = FlatState(self.model.weights.schema, row.clone())
        for view in scaled.views.values():
            view.mul_(factor(float(view.norm())))
        return scaled.flat

    def _scoring(self) -> Tokens:
        digests = [Digest(f"{i}-{self.round}") for i in range(HONEST)]
        key = self.recipe.seed.to_bytes(32, "big")
        return self.vocabulary(self.corpus.score(key, self.round, digests, SCORES[-1] // self.recipe.length))

    def _scores(self, windows: Tokens) -> dict[str, Tensor]:
        counts = [tokens // self.recipe.length for tokens in SCORES]
        means = self._growing(windows, counts)
        return {f"score/{tokens}": means[count] for tokens, count in zip(SCORES, counts, strict=True)}

    def _growing(self, windows: Tokens, counts: Sequence[int]) -> dict[int, Tensor]:
        """Mean gradients of the first windows, for each of the rising `counts`."""
        means: dict[int, Tensor] = {}
        total, done = torch.zeros_like(self.model.weights.flat), 0
        for count in counts:
            total = total + self.gradient(windows[done:count]) * (count - done)
            done = count
            means[count] = total / done
        return means

    def _true_changes(self, rows: list[Tensor], windows: Tokens) -> dict[str, Any]:
        """Loss change of a short step along each row on TRUE_TOKENS scoring tokens; all steps have one length."""
        windows = windows[: TRUE_TOKENS // self.recipe.length]
        before = mean_loss(self.model, windows, micro_batch=32, precision="fp32")
        weights, norms = self.model.weights.flat.clone(), [float(row.norm()) for row in rows]
        after = []
        for row, norm in zip(rows, norms, strict=True):
            self.model.weights.flat.copy_(weights).sub_(row, alpha=TRUE_STEP * float(np.median(norms)) / norm)
            after.append(mean_loss(self.model, windows, micro_batch=32, precision="fp32"))
        self.model.weights.flat.copy_(weights)
        return {"loss": before, "change": [before - loss for loss in after]}

    def _step(self, aggregate: Tensor) -> None:
        past, before = self.past, self.model.weights.flat.clone()
        clipped = FlatState(self.model.weights.schema, aggregate.clone())
        self.optimizer.clip(clipped)
        self.optimizer.step(clipped, learning_rate(self.round, self.config))
        past.weights.append(before)
        past.aggregates.append(aggregate)
        past.steps.append(self.model.weights.flat - before)
        for decay in DECAYS:
            past.mean(f"ema/{decay}", decay, aggregate)
        past.mean("second", 0.95, aggregate.square())

    def _remember(self, rows: Mapping[str, Tensor]) -> None:
        for miner in STALE.values():
            self.past.full.setdefault(miner, deque(maxlen=LAGS)).append(rows[f"full/{miner}"])
        self.past.small.append(rows["small/0"])


def graded_names() -> list[str]:
    """Rows of the 16 graded miners: part of a batch, wrong labels, old weights."""
    parts = ["full/0", *(f"part/{i}" for i in FRACTIONS)]
    return [*parts, *(f"noise/{p}" for p in NOISE.values()), *(f"late/{k}" for k in STALE), "half/2"]


def inner_products(rows: Mapping[str, Tensor]) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    """Names and inner products of the rows: fp32 within a block, float64 across blocks."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for parts in zip(*(torch.split(row, 1 << 15) for row in rows.values()), strict=True):
        block = torch.stack(parts)
        total += block @ block.T
    return [*rows], total.numpy()


def collect(recipe: Recipe, folder: Path) -> Path:
    """Train and write FOLDER/NAME.npz unless it exists. Raises UsageError if an existing file lacks a row."""
    path = folder / f"{recipe.name}.npz"
    if path.exists():
        with np.load(path) as kept:
            if not set(graded_names()) <= set(kept["names"]):
                raise UsageError(f"{path} was written by another version of this study: move it away")
        return path
    training = Training(recipe)
    for _ in range(_UNRECORDED):
        training.advance(record=False)
    kept = [evidence for _ in range(recipe.rounds) if (evidence := training.advance(record=True)) is not None]
    arrays = {key: np.array([evidence[key] for evidence in kept]) for key in ("gram", "present", "loss", "change")}
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part.npz")
    np.savez_compressed(aside, allow_pickle=False, names=np.array(kept[0]["names"]), **arrays)
    aside.replace(path)
    return path
