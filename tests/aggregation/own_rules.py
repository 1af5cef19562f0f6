"""A user's own rules, good and bad, for the tests of `--aggregation.rule package.module:object`."""

import sys

import numpy as np
import torch

from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.aggregation.rules import Mean
from fedgpt2.aggregation.stages import NormClip


def mean(rows, f):
    return rows.mean(0)


class First:
    """A span rule: the first vector."""

    def weights(self, span, f):
        return np.eye(span.m)[0]


class Largest:
    """A coordinatewise rule."""

    def reduce(self, block, f):
        return block.amax(0)


clipped = Pipeline((NormClip(),), Mean())
NUMBER = 3


def wrong_shape(rows, f):
    return rows


def raises(rows, f):
    raise ValueError("no\nand more")


def exits(rows, f):
    sys.exit(3)


def no_tensor(rows, f):
    return None


def lists(rows, f):
    return torch.tensor(rows.mean(0).tolist(), dtype=torch.float64)
