"""The head looks up between its chunks, so that whoever waits for a stop does not wait for all logits."""

import pytest
import torch

from fedgpt2.errors import Reason, Refused
from fedgpt2.model.loss import head_loss


def test_the_head_can_be_ended_between_chunks():
    hidden = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    weight, targets = torch.ones(5, 4), torch.zeros(1, 8, dtype=torch.int64)
    beats = []

    def beat():
        beats.append(1)
        if len(beats) == 3:
            raise Refused(Reason.CANCELLED, "enough")

    with pytest.raises(Refused):
        head_loss(hidden, weight, targets, divisor=8, chunk=2, beat=beat)
    assert len(beats) == 3
