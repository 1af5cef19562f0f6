"""Weights to compute on, the exact gradient, and how alike two gradients are."""

import threading

import numpy as np
import torch

from fedgpt2.config import Gradient
from fedgpt2.gradient.registry import build
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.state import FlatState
from fedgpt2.types import ModelShape

__all__ = ["cosine", "exact", "random_weights"]


def random_weights(shape: ModelShape, seed: int) -> FlatState:
    """Initial weights with every bias and gain moved off its trivial value."""
    weights = initialise(shape, seed)
    weights.flat.add_(torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.05)
    return weights


def exact(weights: FlatState, shape: ModelShape, windows: np.ndarray) -> tuple[float, FlatState]:
    strategy = build(Gradient(micro_batch=4, precision="fp32"), torch.device("cpu"))
    out = FlatState(shape.schema())
    result = strategy(GPT2(shape, weights), windows, out=out, stop=threading.Event())
    return result.loss, out


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
