"""Gradient descent without momentum or weight decay."""

from fedgpt2.config import Optimizer
from fedgpt2.model.state import FlatState
from fedgpt2.optim.base import State, Values

__all__ = ["SGD"]


class SGD:
    """w <- w - lr g."""

    def __init__(self, config: Optimizer) -> None:
        """No setting but the learning rate is used."""

    def init(self, weights: FlatState) -> dict[str, FlatState]:
        """No state."""
        return {}

    def update(self, gradient: Values, state: State, weights: Values, lr: float, steps: int) -> tuple[Values, State]:
        """Subtract lr times the gradient, in place."""
        return weights.sub_(gradient, alpha=lr), state
