"""The interface of gradient strategies.

A miner may compute in any way; the result is fixed: the mean gradient of the next-token loss over all target tokens of
the windows, at the given weights.
"""

import threading
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState

__all__ = ["Result", "Strategy"]


@dataclass(frozen=True)
class Result:
    """Mean loss (nats a token) and number of target tokens of a gradient."""

    loss: float
    tokens: int


@runtime_checkable
class Strategy(Protocol):
    """Computes a gradient from windows."""

    def __call__(
        self,
        model: GPT2,
        windows: Shaped[np.ndarray, "n l"],
        *,
        out: FlatState,
        stop: threading.Event,
    ) -> Result:
        """Fill `out` with the mean gradient over the n * (l - 1) target tokens of `windows`.

        `windows` holds token ids [n, l], uint16 or int64; a window of l tokens has l - 1 targets. `out` is
        overwritten, also on failure. Raises Refused: CANCELLED soon after `stop` is set, COMPUTE_FAILED when the
        gradient cannot be computed.
        """
        ...
