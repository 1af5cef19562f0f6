"""The candidates of `fedgpt2 bench compute`, each in a process of its own.

    python -m fedgpt2.cli.bench.compute_worker CANDIDATE PRESET

Both models hold the same weights and are given the same windows; a gradient is one forward and backward
pass over all of them, from zero. transformers is asked for no dropout and no key-value cache, and gets the
same number of threads. bf16 is compared where the CPU has instructions for it; elsewhere it is emulated, more
than ten times slower than fp32, and only fp32 is compared.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedgpt2.cli.bench.worker import peak_mb, release, serve
from fedgpt2.config import PRESETS, Gradient, Optimizer
from fedgpt2.gradient.registry import build as build_strategy
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.hardware import keep_freed_memory, prepare, set_threads
from fedgpt2.model.state import FlatState
from fedgpt2.optim.schedule import learning_rate
from fedgpt2.optim.server import build as build_optimizer
from fedgpt2.types import ModelShape

__all__ = ["LIMITS", "main"]

LIMITS = ("limit.bf16", "limit.fp32")


class Candidate(Protocol):
    """Something that computes the gradient of one batch."""

    def load(self, path: str) -> None:
        """Take the weights of a file: fp32 in the order of `FlatState`."""

    def gradient(self, path: str) -> float:
        """Mean gradient over the windows of an .npy file; its loss."""

    def save(self, path: str) -> None:
        """Write the last gradient as `load` reads weights."""


class Ours:
    """The exact strategy, as a miner runs it."""

    def __init__(self, shape: ModelShape, precision: str) -> None:
        device = prepare("cpu")
        self.model = GPT2(shape)
        self.out = self.model.weights.empty_like()
        self.compute = build_strategy(Gradient(precision=precision), device)

    def load(self, path: str) -> None:
        """See `Candidate`."""
        self.model.weights.memory()[:] = np.memmap(path, np.uint8, "r").data

    def gradient(self, path: str) -> float:
        """See `Candidate`."""
        return self.compute(self.model, np.load(path), out=self.out, stop=threading.Event()).loss

    def save(self, path: str) -> None:
        """See `Candidate`."""
        Path(path).write_bytes(self.out.memory())

    def train(self, path: str, lr: float, to: str) -> dict[str, float]:
        """One optimizer step a row of windows, [steps, n, l] in `path`; writes the weights to `to`."""
        config = Optimizer(lr=lr, warmup=10)
        optimizer = build_optimizer(config, self.model.weights)
        steps = np.load(path)
        losses = []
        for step, windows in enumerate(steps):
            losses.append(self.compute(self.model, windows, out=self.out, stop=threading.Event()).loss)
            optimizer.clip(self.out)
            optimizer.step(self.out, learning_rate(step, config))
        Path(to).write_bytes(self.model.weights.memory())
        return {"first": losses[0], "last": float(np.mean(losses[-10:]))}


class Transformers:
    """GPT2LMHeadModel as its users run it: loss over all logits, autograd, autocast for bf16."""

    def __init__(self, shape: ModelShape, attention: str, bf16: bool) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        set_threads(0)
        config = GPT2Config(
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            n_positions=shape.block_size,
            vocab_size=shape.vocab_size,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            use_cache=False,
        )
        config._attn_implementation = attention
        self.shape = shape
        self.model: Any = GPT2LMHeadModel(config)
        self.bf16 = bf16

    def load(self, path: str) -> None:
        """See `Candidate`."""
        views = FlatState(self.shape.schema(), torch.from_numpy(np.fromfile(path, np.float32))).views
        parameters = dict(self.model.transformer.named_parameters())
        with torch.no_grad():
            for name, view in views.items():
                parameters[name].copy_(view)

    def gradient(self, path: str) -> float:
        """See `Candidate`."""
        tokens = torch.from_numpy(np.load(path).astype(np.int64))
        self.model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(tokens[:, :-1]).logits
            loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def save(self, path: str) -> None:
        """See `Candidate`."""
        gradients = {name: p.grad for name, p in self.model.transformer.named_parameters()}
        with open(path, "wb") as file:
            for name in self.shape.schema():
                file.write(gradients[name].contiguous().numpy().data)


class Limit:
    """The least time the hardware could take: nothing but the same number of multiply-adds in torch.mm."""

    def __init__(self, dtype: torch.dtype) -> None:
        prepare("cpu")
        self.a = torch.ones(_SIDE, _SIDE, dtype=dtype)
        self.out = torch.empty_like(self.a)

    def multiply(self, flops: float) -> None:
        """Square products of 2048 that take `flops` floating point operations."""
        for _ in range(max(1, round(flops / (2 * _SIDE**3)))):
            torch.mm(self.a, self.a, out=self.out)


_SIDE = 2048


def candidate(name: str, shape: ModelShape) -> Candidate:
    """The candidate of that name; with `.malloc` after it, under our allocator setting. Raises KeyError for another."""
    if name.endswith(".malloc"):
        keep_freed_memory()
    builders: dict[str, Callable[[], Candidate]] = {
        "fedgpt2": lambda: Ours(shape, "auto"),
        "fedgpt2.fp32": lambda: Ours(shape, "fp32"),
        "transformers.fp32": lambda: Transformers(shape, "eager", bf16=False),
        "transformers.sdpa.fp32": lambda: Transformers(shape, "sdpa", bf16=False),
        "transformers.sdpa.bf16": lambda: Transformers(shape, "sdpa", bf16=True),
    }
    return builders[name.removesuffix(".malloc")]()


def main(name: str, preset: str) -> None:
    """Serve one candidate, or one limit, until the bench closes the pipe."""
    if name in LIMITS:
        limit = Limit(torch.bfloat16 if name.endswith("bf16") else torch.float32)
        serve({"multiply": limit.multiply, "release": release, "peak": lambda: {"peak_mb": peak_mb()}})
        return
    chosen = candidate(name, PRESETS[preset])
    commands: dict[str, Any] = {
        "load": chosen.load,
        "gradient": lambda path: {"loss": chosen.gradient(path)},
        "save": chosen.save,
        "release": release,
        "peak": lambda: {"peak_mb": peak_mb()},
    }
    if isinstance(chosen, Ours):
        commands["train"] = chosen.train
    serve(commands)


if __name__ == "__main__":
    main(*sys.argv[1:])
