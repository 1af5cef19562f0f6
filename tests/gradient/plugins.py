"""Plugins, good and bad, for the tests of the plugin strategy."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

NUMBER = 1


def example(weights, tokens, shape):
    """The published example, loaded from its file."""
    path = Path(__file__).parents[2] / "examples" / "plugin_gradient.py"
    spec = importlib.util.spec_from_file_location("plugin_gradient", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.gradient(weights, tokens, shape)


def wide(weights, tokens, shape):
    gradient, loss = example(weights, tokens, shape)
    return {name: np.asfortranarray(g.astype(np.float64)) for name, g in gradient.items()}, np.float32(loss)


def raises(weights, tokens, shape):
    raise ValueError("no\nand a second line")


class OwnError(Exception):
    pass


def raises_its_own(weights, tokens, shape):
    raise OwnError("no such thing")


def exits(weights, tokens, shape):
    sys.exit(3)


def returns_nothing(weights, tokens, shape):
    return None


def zeros(weights):
    return {name: np.zeros_like(array) for name, array in weights.items()}


def forgets_one(weights, tokens, shape):
    gradient = zeros(weights)
    del gradient["h.0.attn.c_attn.bias"]
    return gradient, 1.0


def wrong_shape(weights, tokens, shape):
    return {**zeros(weights), "wte.weight": np.zeros(3, np.float32)}, 1.0


def wrong_kind(weights, tokens, shape):
    return {**zeros(weights), "ln_f.bias": np.zeros(16, np.int64)}, 1.0


def not_finite(weights, tokens, shape):
    return {**zeros(weights), "ln_f.bias": np.full(16, np.nan, np.float32)}, 1.0


def loss_not_finite(weights, tokens, shape):
    return zeros(weights), float("nan")


def writes_weights(weights, tokens, shape):
    weights["ln_f.bias"] += 1.0
    return zeros(weights), 1.0


class Mute(Exception):
    def __str__(self):
        raise OwnError("not even that")


def raises_without_a_word(weights, tokens, shape):
    raise Mute


class Lazy(dict):
    def __getitem__(self, name):
        raise OwnError("not there after all")


def answers_lazily(weights, tokens, shape):
    return Lazy(zeros(weights)), 1.0
