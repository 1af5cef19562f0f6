"""The optimizer step of the validator, over weights, gradient and moments that are each one buffer."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fedgpt2.config import Optimizer
from fedgpt2.errors import CheckpointError, Culprit, Reason, Refused, UsageError
from fedgpt2.model.state import FlatState

__all__ = ["OPTIMIZERS", "ServerOptimizer", "build"]

OPTIMIZERS = ("adamw", "sgd")
_Views = Mapping[str, Tensor]
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

    def clip(self, gradient: FlatState) -> float:
        """Scale `gradient` in place to `config.clip` where its norm is above; returns the norm it had.

        Raises Refused (non_finite), with nothing changed, when that is not a finite number.
        """
        norm = gradient.norm()
        if not math.isfinite(norm):
            raise Refused(Reason.NON_FINITE, "the aggregate is not finite", Culprit.VALIDATOR)
        if self.config.clip and norm > self.config.clip:
            gradient.flat.mul_(self.config.clip / norm)
        return norm

    def step(self, gradient: FlatState, lr: float) -> None:
        """Move the weights by one step against `gradient`, which is finite."""
        names = list(self.weights.views)
        moments = [moment.views for moment in self._moments.values()]
        self._move(names, self.weights.views, gradient.views, moments, lr)
        self.steps += 1

    def preview(self, gradient: FlatState, lr: float, out: FlatState) -> None:
        """Write into `out` what `step(gradient, lr)` would make of the weights, bit for bit; they stay as they are.

        Tensor by tensor, so that no second pair of moments is in memory.
        """
        for name, view in out.views.items():
            view.copy_(self.weights.views[name])
            moments = [{name: moment.views[name].clone()} for moment in self._moments.values()]
            self._move([name], out.views, gradient.views, moments, lr)

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

    def _move(
        self, names: Sequence[str], weights: _Views, gradient: _Views, moments: Sequence[_Views], lr: float
    ) -> None:
        if self.config.name == "sgd":
            for name in names:
                weights[name].sub_(gradient[name], alpha=lr)
            return
        for matrices in (True, False):
            chosen = [name for name in names if (weights[name].ndim >= 2) == matrices]
            if chosen:
                self._adamw(chosen, weights, gradient, moments, lr, self.config.weight_decay if matrices else 0.0)

    def _adamw(
        self,
        names: Sequence[str],
        weights: _Views,
        gradient: _Views,
        moments: Sequence[_Views],
        lr: float,
        weight_decay: float,
    ) -> None:
        config = self.config
        first, second = moments
        adamw(
            [weights[name] for name in names],
            [gradient[name] for name in names],
            [first[name] for name in names],
            [second[name] for name in names],
            [],
            # one step counter a tensor: the fused kernel advances each of them
            list(torch.full((len(names),), float(self.steps), device=gradient[names[0]].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=config.beta1,
            beta2=config.beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=config.eps,
            maximize=False,
        )


def build(config: Optimizer, weights: FlatState) -> ServerOptimizer:
    """The optimizer the settings name, over `weights`. Raises UsageError for an unknown name."""
    return ServerOptimizer(config, weights)
