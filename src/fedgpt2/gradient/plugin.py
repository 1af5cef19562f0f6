"""A gradient computed by the miner's own function, in any framework: `--gradient.plugin package.module:function`.

    function(weights: dict[str, np.ndarray], tokens: np.ndarray, shape: ModelShape)
        -> tuple[dict[str, np.ndarray], float]

`weights` are read-only fp32 arrays by the names of `ModelShape.schema()`; `tokens` is [n, l] int64, the
first l - 1 of a window read, the last l - 1 predicted. It returns the mean gradient by the same names and
shapes and the mean loss (nats a token). An example: examples/plugin_gradient.py.
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped

from fedgpt2.config import Gradient
from fedgpt2.errors import Reason, Refused, UsageError
from fedgpt2.gradient.strategy import Result
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.registry import load, plugin_errors
from fedgpt2.types import ModelShape

__all__ = ["Function", "Plugin"]

Function = Callable[[dict[str, np.ndarray], np.ndarray, ModelShape], tuple[dict[str, np.ndarray], float]]

_FLAG = "--gradient.plugin"


@dataclass(frozen=True)
class Plugin:
    """A `Strategy` that calls a function and checks what it returns."""

    name: str
    function: Function

    @classmethod
    def build(cls, config: Gradient) -> "Plugin":
        """Import the function the settings name. Raises UsageError, one line, when that fails."""
        function = load(config.plugin, _FLAG)
        if not callable(function):
            raise UsageError(f"{_FLAG} {config.plugin}: not a function")
        return cls(config.plugin, function)

    def __call__(
        self, model: GPT2, windows: Shaped[np.ndarray, "n l"], *, out: FlatState, stop: threading.Event
    ) -> Result:
        """See `Strategy`; `stop` is checked before and after the function, which cannot be interrupted."""
        _check_stop(stop)
        weights = {name: _read_only(view) for name, view in model.weights.to("cpu").views.items()}
        with plugin_errors(self._wrong, passing=(Refused,)):
            answer = self.function(weights, windows.astype(np.int64), model.shape)
            _check_stop(stop)
            loss = self._fill(out, answer)  # reading a mapping of the plugin's own class may raise as well
        return Result(loss, windows.shape[0] * (windows.shape[1] - 1))

    def _fill(self, out: FlatState, answer: object) -> float:
        match answer:
            case (Mapping() as gradient, loss) if isinstance(loss, int | float | np.floating):
                pass
            case _:
                raise self._wrong("returned no pair of (gradients by name, loss)")
        if set(gradient) != set(out.schema):
            odd = sorted(map(str, set(gradient) ^ set(out.schema)))
            raise self._wrong(f"missing or unknown gradient {odd[0]!r}")
        for name, view in out.views.items():
            view.copy_(torch.from_numpy(self._checked(name, gradient[name], tuple(view.shape))))
        if not math.isfinite(loss):
            raise self._wrong(f"loss is {loss}")
        return float(loss)

    def _checked(self, name: str, value: object, shape: tuple[int, ...]) -> np.ndarray:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape != shape:
            raise self._wrong(f"gradient of {name} is not a float array of shape {shape}")
        array = np.require(value, np.float32, ["C_CONTIGUOUS", "WRITEABLE"])
        if not np.isfinite(array).all():
            raise self._wrong(f"gradient of {name} is not finite")
        return array

    def _wrong(self, what: str) -> Refused:
        return Refused(Reason.COMPUTE_FAILED, f"{self.name}: {what}")


def _read_only(view: torch.Tensor) -> np.ndarray:
    array: np.ndarray = view.numpy().view()
    array.flags.writeable = False
    return array


def _check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise Refused(Reason.CANCELLED, "the gradient was cancelled")
