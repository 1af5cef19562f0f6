"""A miner's computing alone, for `bench round`: the exact strategy on windows of a file.

python -m fedgpt2.cli.bench.round_worker PRESET THREADS
"""

import sys
import threading
from collections.abc import Sequence

import numpy as np

from fedgpt2.cli.bench.worker import peak_mb, serve
from fedgpt2.config import PRESETS, Gradient
from fedgpt2.gradient.registry import build
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.hardware import prepare

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Compute gradients until standard input ends."""
    preset, threads = argv
    strategy = build(Gradient(), prepare("cpu", int(threads)))
    shape = PRESETS[preset]
    model = GPT2(shape, initialise(shape, 0))
    out = model.weights.empty_like()

    def gradient(path: str) -> dict[str, float]:
        return {"loss": strategy(model, np.load(path), out=out, stop=threading.Event()).loss}

    serve({"gradient": gradient, "peak": lambda: {"peak_mb": peak_mb()}})


if __name__ == "__main__":
    main(sys.argv[1:])
