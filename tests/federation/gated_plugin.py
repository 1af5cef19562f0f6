"""A gradient that waits until it is let through: its n-th call ends once the file `$GATE` holds a number >= n.

What it returns is no gradient, but finite, of the right shapes, and the same for the same tokens.
"""

import os
import time
from pathlib import Path

import numpy as np


def gradient(weights, tokens, shape):
    gate = Path(os.environ["GATE"])
    calls = gate.with_suffix(".calls")
    with calls.open("a") as file:
        file.write(".")
    while int(gate.read_text() or 0) < len(calls.read_text()):
        time.sleep(0.01)
    scale = float(tokens.mean()) * 1e-7
    return {name: np.full(value.shape, scale, np.float32) for name, value in weights.items()}, 10.0
