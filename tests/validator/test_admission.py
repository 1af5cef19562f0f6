"""The whole admission list, a line of it a test."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2 import codec
from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, NetworkError, Reason, Refused
from fedgpt2.link.base import ConnectedMiner, IssuedOrder, OrderResult, ReceivedContribution
from fedgpt2.link.receive import check_contribution
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Contribution, Envelope, Order
from fedgpt2.protocol.tensors import read_header
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Hotkey, ModelShape, WorkId
from fedgpt2.validator.admission import AdmissionResult, Status, admit, check_values

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=2, block_size=4, vocab_size=5)
SCHEMA = SHAPE.schema()
FP32 = codec.get("fp32")
D = FP32.data_bytes(SCHEMA) // 4
LENGTH = len(FP32.header(SCHEMA)) + 4 * D
HEADER_LIMIT = 4096
WORK = WorkId("3" * 64)


def order(**changes: object) -> Order:
    fields = {
        "run_id": "1" * 64,
        "round": 5,
        "attempt": 0,
        "sender": "validator",
        "receiver": "miner",
        "parent": "2" * 64,
        "model": SHAPE,
        "state": (BlobRef(digest="4" * 64, length=LENGTH, codec="fp32"),),
        "assignment": Assignment(manifest="5" * 64, manifest_length=9, slot=0, pages=(1,), windows=((0, 1),)),
        "answer_codecs": ("fp32",),
        "caps": Caps(answer_bytes=LENGTH),
        "budget_seconds": 5.0,
    }
    return Order(**{**fields, **changes})


def contribution(**changes: object) -> Contribution:
    fields = {
        "run_id": "1" * 64,
        "round": 5,
        "work_id": WORK,
        "parent": "2" * 64,
        "sender": "miner",
        "receiver": "validator",
        "blob": BlobRef(digest="6" * 64, length=LENGTH, codec="fp32"),
        "claimed_loss": 1.0,
        "tokens": 8,
        "seconds": 0.1,
    }
    return Contribution(**{**fields, **changes})


def result(values: torch.Tensor, hotkey: str = "miner", digest: str = "6") -> OrderResult:
    envelope = Envelope(kind="order", payload="{}", signer="validator", signature="0" * 128)
    issued = IssuedOrder(ConnectedMiner(Hotkey(hotkey), "127.0.0.1:1"), order(), envelope, WORK, tokens=8)
    blob = BlobRef(digest=digest * 64, length=LENGTH, codec="fp32")
    layout = read_header(FP32.header(SCHEMA)[8:], SCHEMA, "F32")
    data = memoryview(bytearray(FP32.encode(values)))
    return OrderResult(issued, ReceivedContribution(contribution(blob=blob), layout, data), answered=True)


def test_an_answer_to_this_order_passes() -> None:
    check_contribution(order(), WORK, contribution(), HEADER_LIMIT)


REFUSALS = {
    "of another run": ({"run_id": "9" * 64}, Reason.WRONG_ORDER),
    "of the round before, though the weights did not move": ({"round": 4}, Reason.WRONG_ORDER),
    "of other work": ({"work_id": "9" * 64}, Reason.WRONG_ORDER),
    "in another miner's name": ({"sender": "other"}, Reason.WRONG_RECEIVER),
    "to another validator": ({"receiver": "other"}, Reason.WRONG_RECEIVER),
    "over other weights": ({"parent": "9" * 64}, Reason.WRONG_PARENT),
    "in a codec not offered": (
        {"blob": BlobRef(digest="6" * 64, length=LENGTH // 2, codec="bf16")},
        Reason.UNSUPPORTED_CODEC,
    ),
    "over the cap": ({"blob": BlobRef(digest="6" * 64, length=LENGTH + 1, codec="fp32")}, Reason.TOO_LARGE),
    "too short": ({"blob": BlobRef(digest="6" * 64, length=4 * D, codec="fp32")}, Reason.WRONG_LENGTH),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_a_byte_is_fetched(case: str) -> None:
    changes, reason = REFUSALS[case]
    with pytest.raises(Refused) as caught:
        check_contribution(order(), WORK, contribution(**changes), HEADER_LIMIT)
    assert (caught.value.reason, caught.value.culprit) == (reason, Culprit.MINER)


def test_a_body_longer_than_header_and_tensors_can_be_is_refused() -> None:
    blob = BlobRef(digest="6" * 64, length=4 * D + 8 + HEADER_LIMIT + 1, codec="fp32")
    with pytest.raises(Refused) as caught:
        check_contribution(order(caps=Caps(answer_bytes=1 << 30)), WORK, contribution(blob=blob), HEADER_LIMIT)
    assert caught.value.reason is Reason.WRONG_LENGTH


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@given(place=st.integers(0, D - 1))
def test_one_value_that_is_not_finite_refuses_the_gradient(bad: float, place: int) -> None:
    values = FlatState(SCHEMA)
    values.flat[place] = bad
    with pytest.raises(Refused) as caught:
        check_values(values, 1e3)
    assert (caught.value.reason, caught.value.culprit) == (Reason.NON_FINITE, Culprit.MINER)


@given(scale=st.floats(1e-30, 3e38))
def test_the_norm_is_bounded_and_never_overflows(scale: float) -> None:
    values = FlatState(SCHEMA)
    values.flat.fill_(scale)
    norm = float(values.flat[0]) * math.sqrt(D)
    if norm <= 1e3:
        assert check_values(values, 1e3) == pytest.approx(norm, rel=1e-6)
    else:
        with pytest.raises(Refused) as caught:
            check_values(values, 1e3)
        assert caught.value.reason is Reason.NORM_BOUND


def test_admit_judges_each_and_keeps_the_order() -> None:
    good, nan = torch.ones(D), torch.full((D,), math.nan)
    lost = replace(result(good, "gone"), received=None, answered=False, failure=NetworkError(Reason.UNREACHABLE))
    forged = replace(result(good, "liar"), received=None, failure=Refused(Reason.WRONG_PARENT, "", Culprit.MINER))
    results = [result(good, "a", "a"), result(nan, "b", "b"), lost, forged, result(good, "c", "c")]
    verdicts = admit(results, Limits(), MemoryPool().lease)
    assert [verdict.status for verdict in verdicts] == [
        Status.ADMITTED,
        Status.REFUSED,
        Status.FAILED,
        Status.REFUSED,
        Status.ADMITTED,
    ]
    assert [reason(verdict) for verdict in verdicts] == [None, "non_finite", "unreachable", "wrong_parent", None]
    assert verdicts[0].norm == pytest.approx(math.sqrt(D))
    assert verdicts[0].values is not None
    assert torch.equal(verdicts[0].values, good)
    assert verdicts[1].values is None


def reason(verdict: AdmissionResult) -> str | None:
    return verdict.failure.reason.value if verdict.failure else None


def test_of_two_equal_bodies_the_first_keeps_its_place() -> None:
    verdicts = admit([result(torch.ones(D), "a"), result(torch.ones(D), "b")], Limits(), MemoryPool().lease)
    assert [verdict.status for verdict in verdicts] == [Status.ADMITTED, Status.REFUSED]
    assert reason(verdicts[1]) == "duplicate"


def test_equal_bodies_that_are_no_gradients_are_each_its_senders_fault() -> None:
    verdicts = admit([result(torch.full((D,), math.nan), hotkey) for hotkey in "ab"], Limits(), MemoryPool().lease)
    assert [reason(verdict) for verdict in verdicts] == ["non_finite", "non_finite"]
    verdicts = admit([result(torch.full((D,), 1e9), hotkey) for hotkey in "ab"], Limits(), MemoryPool().lease)
    assert [reason(verdict) for verdict in verdicts] == ["norm_bound", "norm_bound"]
