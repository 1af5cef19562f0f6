"""The exact gradient, by automatic differentiation in micro-batches."""

import threading
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped

from fedgpt2.config import Gradient
from fedgpt2.errors import Reason, Refused, UsageError
from fedgpt2.gradient.strategy import Result
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.hardware import arithmetic, native_precision
from fedgpt2.model.loss import to_tokens, window_loss
from fedgpt2.model.state import FlatState

__all__ = ["CPU_TOKENS", "Exact"]

CPU_TOKENS = 2048  # largest micro-batch on a CPU, in tokens: a larger one is no faster there and takes memory


@dataclass(frozen=True)
class Exact:
    """A `Strategy`: forward and backward over micro-batches whose gradients add up in place."""

    micro_batch: int
    precision: str

    @classmethod
    def build(cls, config: Gradient, device: torch.device) -> "Exact":
        """From the settings. Raises UsageError for an unknown precision or an empty micro-batch."""
        if config.micro_batch < 1:
            raise UsageError(f"--gradient.micro_batch {config.micro_batch}: at least 1")
        precision = native_precision(device) if config.precision == "auto" else config.precision
        arithmetic(device, precision)
        return cls(config.micro_batch, precision)

    def __call__(
        self, model: GPT2, windows: Shaped[np.ndarray, "n l"], *, out: FlatState, stop: threading.Event
    ) -> Result:
        """See `Strategy`; `stop` is checked between micro-batches and between the model's blocks."""
        tokens = windows.shape[0] * (windows.shape[1] - 1)
        if tokens < 1:
            raise Refused(Reason.COMPUTE_FAILED, "no windows to compute on")
        grads = out if out.device == model.device else model.weights.empty_like()
        model.bind(model.weights, grads.zero_())
        try:
            loss = self._accumulate(model, windows, tokens, stop)
        finally:
            model.bind(model.weights)
        if grads is not out:
            out.copy_(grads)
        return Result(loss, tokens)

    def _accumulate(self, model: GPT2, windows: Shaped[np.ndarray, "n l"], total: int, stop: threading.Event) -> float:
        def check_stop() -> None:
            if stop.is_set():
                raise Refused(Reason.CANCELLED, "the gradient was cancelled")

        size = self._windows_at_once(model.device, windows.shape[1] - 1)
        loss = 0.0
        for first in range(0, len(windows), size):
            check_stop()
            tokens = to_tokens(windows[first : first + size], model.device)
            part = window_loss(model, tokens, divisor=total, precision=self.precision, beat=check_stop)
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        return loss

    def _windows_at_once(self, device: torch.device, length: int) -> int:
        if device.type != "cpu":
            return self.micro_batch
        return min(self.micro_batch, max(1, CPU_TOKENS // length))
