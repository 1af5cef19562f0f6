"""The interface of optimizers: a pair of functions over explicit state, after `init` and `update` of optax."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from fedgpt2.model.state import FlatState

__all__ = ["State", "UpdateRule", "Values"]

Values = Float32[Tensor, "..."]
"""Of one tensor of the model: its weights, its gradient, or a part of its state; all of one shape."""
State = Mapping[str, Values]
"""The state of one tensor of the model, by name."""


@runtime_checkable
class UpdateRule(Protocol):
    """What one step makes of the weights. The caller keeps the state, counts the steps and clips the gradient."""

    def init(self, weights: FlatState) -> Mapping[str, FlatState]:
        """The state before the first step: named buffers in the layout of `weights`. Checkpoints hold them by name."""
        ...

    def update(self, gradient: Values, state: State, weights: Values, lr: float, steps: int) -> tuple[Values, State]:
        """New weights and new state of one tensor of the model; `steps` steps were taken before.

        The result depends on the arguments alone: the loss gate tries a step at several learning rates before one is
        taken. The memory of `state` and `weights` may be reused for the result; `gradient` stays unchanged.
        """
        ...
