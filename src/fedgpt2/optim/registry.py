"""The optimizers by name; a new one is a file and a `register` line, or a user's own `package.module:object`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedgpt2.config import Optimizer
from fedgpt2.errors import SetupError
from fedgpt2.model.state import FlatState
from fedgpt2.optim.adamw import AdamW
from fedgpt2.optim.base import State, UpdateRule, Values
from fedgpt2.optim.sgd import SGD
from fedgpt2.registry import Registry, plugin_errors

__all__ = ["OPTIMIZERS", "Factory"]

Factory = Callable[[Optimizer], UpdateRule]


@dataclass(frozen=True)
class _Imported:
    """A user's own update rule: its errors and unusable results become one line each."""

    name: str
    rule: UpdateRule

    def init(self, weights: FlatState) -> Mapping[str, FlatState]:
        """The rule's state, checked. Raises SetupError."""
        with plugin_errors(self._failure):
            state = dict(self.rule.init(weights))
        for key, buffer in state.items():
            if key == "step" or key.startswith("aggregate_"):  # names of a checkpoint's own tensors
                raise self._failure(f"the state may not hold a buffer called {key}")
            if not isinstance(buffer, FlatState) or buffer.schema != weights.schema:
                raise self._failure(f"the state's {key} is no FlatState in the layout of the weights")
        return state

    def update(self, gradient: Values, state: State, weights: Values, lr: float, steps: int) -> tuple[Values, State]:
        """The rule's result, checked. Raises SetupError."""
        with plugin_errors(self._failure):
            moved, kept = self.rule.update(gradient, state, weights, lr, steps)
            shapes = {moved.shape, *(kept[key].shape for key in state)}
        if shapes != {weights.shape}:
            raise self._failure(f"the update of a tensor of shape {tuple(weights.shape)} has another shape")
        return moved, kept

    def _failure(self, what: str) -> SetupError:
        return SetupError(f"--optimizer.name {self.name}: {what}")


def _adapt(name: str, loaded: object) -> Factory:
    if not callable(loaded):
        raise TypeError("expected a class, or a function, that takes the optimizer's settings")

    def build(config: Optimizer) -> UpdateRule:
        with plugin_errors(lambda what: SetupError(f"--optimizer.name {name}: {what}")):
            rule = loaded(config)
        if not isinstance(rule, UpdateRule):
            raise SetupError(f"--optimizer.name {name}: expected an object with init and update")
        return _Imported(name, rule)

    return build


OPTIMIZERS: Registry[Factory] = Registry("optimizer", _adapt)
OPTIMIZERS.register("adamw", AdamW)
OPTIMIZERS.register("sgd", SGD)
