"""AdamW, by torch's fused kernel."""

import torch
from torch.optim.adamw import adamw

from fedgpt2.config import Optimizer
from fedgpt2.model.state import FlatState
from fedgpt2.optim.base import State, Values

__all__ = ["AdamW"]


class AdamW:
    """Adam with decoupled weight decay of matrices; vectors (biases, gains) do not decay.

    Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019, https://arxiv.org/abs/1711.05101, algorithm 2.
    """

    def __init__(self, config: Optimizer) -> None:
        """Betas, epsilon and weight decay are those of the settings."""
        self._config = config

    def init(self, weights: FlatState) -> dict[str, FlatState]:
        """Both moments, zero."""
        return {"exp_avg": weights.empty_like(), "exp_avg_sq": weights.empty_like()}

    def update(self, gradient: Values, state: State, weights: Values, lr: float, steps: int) -> tuple[Values, State]:
        """One call of the kernel, in place."""
        adamw(
            [weights],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [torch.tensor(float(steps), device=gradient.device)],  # the kernel adds one
            fused=True,
            amsgrad=False,
            beta1=self._config.beta1,
            beta2=self._config.beta2,
            lr=lr,
            weight_decay=self._config.weight_decay if weights.ndim >= 2 else 0.0,
            eps=self._config.eps,
            maximize=False,
        )
        return weights, state
