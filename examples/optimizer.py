"""An optimizer of your own: Lion (Chen et al. 2023, arXiv 2302.06675).

    fedgpt2 simulate --optimizer.name examples.optimizer:Lion --optimizer.lr 3e-4

`init` gives the state, named buffers laid out as the weights; checkpoints hold it. `update` gives new weights and new
state of one tensor of the model. It must depend on its arguments alone: the loss gate tries steps before one is taken.
"""

from torch import Tensor

from fedgpt2.config import Optimizer
from fedgpt2.model.state import FlatState


class Lion:
    def __init__(self, settings: Optimizer) -> None:
        self.settings = settings

    def init(self, weights: FlatState) -> dict[str, FlatState]:
        return {"momentum": weights.empty_like()}

    def update(
        self, gradient: Tensor, state: dict[str, Tensor], weights: Tensor, lr: float, steps: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        momentum, decay = state["momentum"], self.settings.weight_decay if weights.ndim > 1 else 0.0
        direction = momentum.lerp(gradient, 1 - self.settings.beta1).sign() + decay * weights
        return weights - lr * direction, {"momentum": momentum.lerp(gradient, 1 - self.settings.beta2)}
