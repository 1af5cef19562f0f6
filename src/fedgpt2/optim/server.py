"""The optimizer of the validator: an update rule, the weights it moves, its state and its step count."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedgpt2.config import Optimizer
from fedgpt2.errors import CheckpointError, Culprit, Reason, Refused
from fedgpt2.model.state import FlatState
from fedgpt2.optim.registry import OPTIMIZERS

__all__ = ["ServerOptimizer", "build", "state_buffers"]


class ServerOptimizer:
    """An update rule applied to a `FlatState` of weights, tensor by tensor."""

    def __init__(self, config: Optimizer, weights: FlatState) -> None:
        """Before the first step. Raises UsageError for an unknown name."""
        self.config = config
        self.weights = weights
        self.steps = 0
        self._rule = OPTIMIZERS.get(config.name, "--optimizer.name")(config)
        self._state = dict(self._rule.init(weights))

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
        """Move weights and state by one step against `gradient`, which is finite."""
        for name, weights in self.weights.views.items():
            state = self._state_of(name)
            moved, kept = self._rule.update(gradient.views[name], state, weights, lr, self.steps)
            _store(moved, weights)
            for key, tensor in state.items():
                _store(kept[key], tensor)
        self.steps += 1

    def preview(self, gradient: FlatState, lr: float, out: FlatState) -> None:
        """Write into `out` the weights that `step(gradient, lr)` would give, bit for bit; nothing else changes.

        The state is copied tensor by tensor, so that no second copy of it is in memory.
        """
        for name, weights in out.views.items():
            weights.copy_(self.weights.views[name])
            state = {key: tensor.clone() for key, tensor in self._state_of(name).items()}
            moved, _ = self._rule.update(gradient.views[name], state, weights, lr, self.steps)
            _store(moved, weights)

    def tensors(self) -> dict[str, Tensor]:
        """What a continuation needs besides the weights: `step`, int64 [], and each buffer of the state, fp32 [d].

        The buffers are the live ones in the layout of `FlatState`, not copies.
        """
        return {"step": torch.tensor(self.steps), **{key: buffer.flat for key, buffer in self._state.items()}}

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
        for name, buffer in self._state.items():
            buffer.flat.copy_(tensors[name])

    def _state_of(self, name: str) -> dict[str, Tensor]:
        return {key: buffer.views[name] for key, buffer in self._state.items()}


def state_buffers(config: Optimizer) -> int:
    """How many buffers of the model's size the optimizer's state takes. Raises UsageError for an unknown name."""
    rule = OPTIMIZERS.get(config.name, "--optimizer.name")(config)
    return len(rule.init(FlatState({"weight": (1,)})))


def build(config: Optimizer, weights: FlatState) -> ServerOptimizer:
    """The optimizer the settings name, over `weights`. Raises UsageError for an unknown name."""
    return ServerOptimizer(config, weights)


def _store(value: Tensor, out: Tensor) -> None:
    if value is not out:
        out.copy_(value)
