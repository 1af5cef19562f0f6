"""A seeded training of 20 steps stays on its recorded loss curve."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgpt2.config import Gradient, Optimizer
from fedgpt2.gradient.registry import build as build_strategy
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.optim.schedule import learning_rate
from fedgpt2.optim.server import build as build_optimizer
from fedgpt2.types import ModelShape

GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curve.json"
SHAPE = ModelShape(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=97)


def train(steps, precision):
    model = GPT2(SHAPE, initialise(SHAPE, 1337))
    config = Optimizer(lr=0.01, min_lr=0.001, warmup=5)
    optimizer = build_optimizer(config, model.weights)
    compute = build_strategy(Gradient(micro_batch=4, precision=precision), torch.device("cpu"))
    # a walk through the vocabulary in small steps: something to learn within 20 steps
    steps_taken = np.random.default_rng(0).integers(0, 4, (steps, 8, 33))
    gradient, losses = model.weights.empty_like(), []
    for r, windows in enumerate(steps_taken.cumsum(-1) % SHAPE.vocab_size):
        losses.append(compute(model, windows, out=gradient, stop=threading.Event()).loss)
        optimizer.clip(gradient)
        optimizer.step(gradient, learning_rate(r, config, steps))
    return losses


def test_the_loss_curve_is_the_recorded_one():
    losses = train(20, "fp32")
    if os.environ.get("FEDGPT2_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps([round(loss, 6) for loss in losses]) + "\n")
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), abs=1e-4)
    assert losses[-1] < losses[0] - 1.0


def test_bf16_stays_near_it():
    assert train(20, "bf16") == pytest.approx(json.loads(GOLDEN.read_text()), abs=0.05)
