"""The aggregate of a round before it is applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fedgpt2.aggregation.combine import Terms
from fedgpt2.types import Hotkey

__all__ = ["Combined", "SkipReason"]


class SkipReason(StrEnum):
    """Why the weights stay as they are, or why only a part of the step was taken."""

    TOO_FEW = "too_few"  # fewer than 3 f + 1 admitted
    NON_FINITE = "non_finite"
    LOSS_GATE = "loss_gate"
    HALVED = "halved"  # once or more: the whole step would have raised the loss


@dataclass(frozen=True)
class Combined:
    """An aggregate waiting to be used; without a norm there is none, and `reason` says why."""

    by: Terms
    reason: SkipReason | None
    norm: float | None = None
    weights: Mapping[Hotkey, float] = field(default_factory=dict)
    clusters: Mapping[Hotkey, int] = field(default_factory=dict)  # hotkeys of one number sent one computation
    gram: NDArray[np.float64] | None = field(default=None, compare=False)  # of the admitted, where it was formed
