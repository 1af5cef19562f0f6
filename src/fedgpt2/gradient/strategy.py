"""What a gradient strategy is.

The manner is the miner's own affair; the result is not: the mean gradient of the next-token loss over all
target tokens of the windows, at the weights given.
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
    """What a strategy says about its gradient: mean loss (nats a token) and target tokens used."""

    loss: float
    tokens: int


@runtime_checkable
class Strategy(Protocol):
    """Windows to a gradient."""

    def __call__(
        self,
        model: GPT2,
        windows: Shaped[np.ndarray, "n l"],
        *,
        out: FlatState,
        stop: threading.Event,
    ) -> Result:
        """Fill `out` with the mean gradient over the n * (l - 1) target tokens of `windows`.

        `windows` holds token ids [n, l], uint16 or int64; a window of l tokens has l - 1 targets. What
        `out` held before is lost, also on failure. Raises Refused: CANCELLED soon after `stop` is set,
        COMPUTE_FAILED when there is no gradient to give.
        """
        ...
