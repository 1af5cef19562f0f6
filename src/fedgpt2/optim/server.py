"""The optimizer step of the validator, over weights, gradient and moments that are each one buffer."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fedgpt2.config import Optimizer
from fedgpt2.errors import CheckpointError, Culprit, Reason, Refused, UsageError
from fedgpt2.model.state import FlatState

__all__ = ["OPTIMIZERS", "ServerOptimizer", "build"]

OPTIMIZERS = ("adamw", "sgd")
_MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}


class ServerOptimizer:
    """AdamW or plain SGD on a `FlatState` of weights, updated in place.

    AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
    https://arxiv.org/abs/1711.05101, algorithm 2): matrices decay, vectors (biases, gains) do not. SGD is
    w -= lr * g: no momentum, no decay.
    """

    def __init__(self, config: Optimizer, weights: FlatState) -> None:
        """Fresh, with zero moments. Raises UsageError for an unknown name."""
        if config.name not in OPTIMIZERS:
            raise UsageError(f"--optimizer.name {config.name}: one of {', '.join(OPTIMIZERS)}")
        self.config = config
        self.weights = weights
        self.steps = 0
        self._moments = {name: weights.empty_like() for name in _MOMENTS[config.name]}

    def step(self, gradient: FlatState, lr: float) -> float:
        """Move the weights by one step against `gradient`; returns its norm before clipping.

        `gradient` is scaled in place when its norm is above `config.clip`. Raises Refused (non_finite)
        before anything is changed when the norm is not a finite number.
        """
        norm = gradient.norm()
        if not math.isfinite(norm):
            raise Refused(Reason.NON_FINITE, "the aggregate is not finite", Culprit.VALIDATOR)
        if self.config.clip and norm > self.config.clip:
            gradient.flat.mul_(self.config.clip / norm)
        if self.config.name == "sgd":
            self.weights.flat.sub_(gradient.flat, alpha=lr)
        else:
            self._adamw(gradient, lr)
        self.steps += 1
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """All that a continuation needs besides the weights: `step`, int64 [], and each moment, fp32 [d].

        The moments are the live buffers in the layout of `FlatState`, not copies.
        """
        moments = {name: moment.flat for name, moment in self._moments.items()}
        return {"step": torch.tensor(self.steps), **moments}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors()` gave; what follows is bit-identical to an uninterrupted run.

        Raises CheckpointError, and changes nothing, when names, shapes or dtypes differ.
        """
        own = self.tensors()
        if set(tensors) != set(own):
            raise CheckpointError(f"optimizer state holds {sorted(tensors)}, expected {sorted(own)}")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
                raise CheckpointError(f"optimizer state {name} is {tensor.dtype} {tuple(tensor.shape)}")
        self.steps = int(tensors["step"])
        for name, moment in self._moments.items():
            moment.flat.copy_(tensors[name])

    def _adamw(self, gradient: FlatState, lr: float) -> None:
        config = self.config
        for matrices in (True, False):
            names = [name for name, view in self.weights.views.items() if (view.ndim >= 2) == matrices]
            adamw(
                [self.weights.views[name] for name in names],
                [gradient.views[name] for name in names],
                [self._moments["exp_avg"].views[name] for name in names],
                [self._moments["exp_avg_sq"].views[name] for name in names],
                [],
                # one step counter a tensor: the fused kernel advances each of them
                list(torch.full((len(names),), float(self.steps), device=gradient.device).unbind()),
                fused=True,
                amsgrad=False,
                beta1=config.beta1,
                beta2=config.beta2,
                lr=lr,
                weight_decay=config.weight_decay if matrices else 0.0,
                eps=config.eps,
                maximize=False,
            )


def build(config: Optimizer, weights: FlatState) -> ServerOptimizer:
    """The optimizer the settings name, over `weights`. Raises UsageError for an unknown name."""
    return ServerOptimizer(config, weights)
