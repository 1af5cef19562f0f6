"""A gradient by the miner's own function, in any framework: `--gradient.plugin package.module:function`.

    function(weights: dict[str, np.ndarray], tokens: np.ndarray, shape: ModelShape)
        -> tuple[dict[str, np.ndarray], float]

`weights` are read-only fp32 arrays by the names of `ModelShape.schema()`; `tokens` is [n, l] int64, the
first l - 1 of a window read, the last l - 1 predicted. It returns the mean gradient by the same names and
shapes and the mean loss (nats a token). An example: examples/plugin_gradient.py.
"""

import importlib
import math
import os
import sys
import threading
import traceback
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
from fedgpt2.types import ModelShape

__all__ = ["Function", "Plugin"]

Function = Callable[[dict[str, np.ndarray], np.ndarray, ModelShape], tuple[dict[str, np.ndarray], float]]

# A plugin is somebody else's code: whatever it raises, errors of its own kind and sys.exit() among them, is its failure
# and told as such; the miner stays.
_FAILURES = (Exception, SystemExit)


@dataclass(frozen=True)
class Plugin:
    """A `Strategy` that asks a function for the gradient and checks what it returns."""

    name: str
    function: Function

    @classmethod
    def build(cls, config: Gradient) -> "Plugin":
        """Import the function the settings name. Raises UsageError, one line, when that fails."""
        return cls(config.plugin, _load(config.plugin))

    def __call__(
        self, model: GPT2, windows: Shaped[np.ndarray, "n l"], *, out: FlatState, stop: threading.Event
    ) -> Result:
        """As `Strategy` says; `stop` is looked at before and after the function, which cannot be halted."""
        _check_stop(stop)
        weights = {name: _read_only(view) for name, view in model.weights.to("cpu").views.items()}
        try:
            answer = self.function(weights, windows.astype(np.int64), model.shape)
            _check_stop(stop)
            loss = self._fill(out, answer)  # a mapping of its own may raise as well
        except Refused:
            raise
        except _FAILURES as error:
            raise self._wrong(f"{type(error).__name__}: {_line(error)}") from error
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


def _load(name: str) -> Function:
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"--gradient.plugin {name!r}: write it as package.module:function")
    try:
        module = _import(module_name)
    except _FAILURES as error:
        raise UsageError(f"--gradient.plugin {name}: {type(error).__name__}: {_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"--gradient.plugin {name}: {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def _import(name: str) -> object:
    """Import a module, from the current folder too; the folder is on the path only meanwhile."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def _read_only(view: torch.Tensor) -> np.ndarray:
    array: np.ndarray = view.numpy().view()
    array.flags.writeable = False
    return array


def _check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise Refused(Reason.CANCELLED, "the gradient was called off")


def _line(error: BaseException) -> str:
    """The first line of an error's text, also of one whose own `__str__` fails."""
    text = str(traceback.TracebackException(type(error), error, None))
    return (text.splitlines() or [""])[0]
