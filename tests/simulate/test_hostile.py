"""The hostile miner's three answers, as a validator's own rules see them."""

import threading

import numpy as np
import pytest
import torch

from fedgpt2.config import Gradient, Limits
from fedgpt2.errors import ProtocolError, Reason, Refused
from fedgpt2.gradient.registry import build
from fedgpt2.miner.packer import Outcome
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.state import FlatState
from fedgpt2.network.blobs import Blob
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Contribution, Order
from fedgpt2.protocol.tensors import PREFIX, read_header
from fedgpt2.simulate.hostile import ATTACKS, HostilePacker, no_gradient
from fedgpt2.types import ModelShape, WorkId
from fedgpt2.validator.admission import check_contribution, check_values

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=4, block_size=8)
WORK = WorkId("e" * 64)


def order(number: int) -> Order:
    return Order(
        run_id="a" * 64,
        round=number,
        attempt=0,
        sender="validator",
        receiver="miner",
        parent=f"{number:064x}",
        model=SHAPE,
        state=(BlobRef(digest="b" * 64, length=100, codec="fp32"),),
        assignment=Assignment(manifest="c" * 64, manifest_length=2, slot=0, pages=(0,), windows=((0,),)),
        answer_codecs=("fp32",),
        caps=Caps(answer_bytes=1 << 30),
        budget_seconds=10.0,
    )


@pytest.fixture
def answers() -> list[tuple[Contribution, Blob]]:
    packer, gradient = HostilePacker(), FlatState(SHAPE.schema())
    return [packer.pack(order(n), WORK, Outcome(1.0, 8, 0.1), gradient) for n in range(1, 5)]


def judge(number: int, contribution: Contribution, blob: Blob) -> None:
    check_contribution(order(number), WORK, contribution, Limits().header_bytes)
    read_header(blob.header[PREFIX:], SHAPE.schema(), "F32")
    check_values(FlatState(SHAPE.schema(), torch.frombuffer(blob.data, dtype=torch.float32)), 1e3)


def test_each_answer_is_refused_for_its_own_reason(answers: list[tuple[Contribution, Blob]]) -> None:
    reasons = []
    for number, (contribution, blob) in enumerate(answers, 1):
        with pytest.raises((Refused, ProtocolError)) as caught:
            judge(number, contribution, blob)
        reasons.append(caught.value.reason)
    assert reasons == [Reason.WRONG_SHAPE, Reason.NON_FINITE, Reason.WRONG_PARENT, Reason.WRONG_SHAPE]
    assert len(ATTACKS) == 3


def test_the_stale_answer_names_the_round_before(answers: list[tuple[Contribution, Blob]]) -> None:
    assert answers[2][0].parent == order(2).parent


def test_it_does_no_work_and_says_it_did_it_well() -> None:
    strategy = build(Gradient(strategy="plugin", plugin=f"{no_gradient.__module__}:no_gradient"), torch.device("cpu"))
    model, out = GPT2(SHAPE, initialise(SHAPE, 0)), FlatState(SHAPE.schema())
    result = strategy(model, np.zeros((2, 9), np.uint16), out=out, stop=threading.Event())
    assert (result.loss, result.tokens) == (1.0, 16)
    assert torch.all(out.flat == 1e-6)
