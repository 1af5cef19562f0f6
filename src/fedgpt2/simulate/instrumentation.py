"""Access to the aggregates of a run: attacks see the last one, a result compares each with the honest mean."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fedgpt2.config import ValidatorConfig
from fedgpt2.simulate.honest_miners import HonestMiners
from fedgpt2.validator.training import Training

__all__ = ["Gauge", "WatchedTraining"]

T = TypeVar("T")


class WatchedTraining(Training):
    """A validator's training that keeps a copy of the last aggregate."""

    def __init__(self, config: ValidatorConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.formed: Tensor | None = None  # [d] fp32 on the CPU, before clipping; None before the first
        self.times = 0  # how often one was formed
        self._seen = torch.empty_like(self.weights.flat, device="cpu")

    def aggregate(self, form: Callable[[Tensor], T]) -> tuple[float, T]:
        """As in `Training`."""

        def watched(out: Tensor) -> T:
            made = form(out)
            self._seen.copy_(out)
            return made

        self.formed = None
        formed = super().aggregate(watched)
        self.formed, self.times = self._seen, self.times + 1
        return formed


class Gauge:
    """Cosine of a round's aggregate to the honest mean; called once a round."""

    def __init__(self, training: WatchedTraining, honest: HonestMiners) -> None:
        self._training, self._honest, self._times = training, honest, 0

    def __call__(self) -> float | None:
        """None in a round that formed no aggregate."""
        formed, self._times = self._training.times > self._times, self._training.times
        if not formed or self._training.formed is None:
            return None
        return self._honest.cosine(self._training.formed)
