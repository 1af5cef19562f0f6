"""The rules an order must pass, without a miner around them."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2 import codec
from fedgpt2.config import PRESETS, MinerLimits, MinerModel
from fedgpt2.errors import Culprit, Reason, Refused, UsageError
from fedgpt2.miner.orders import (
    MANIFEST_BYTES,
    Taken,
    answer_codec,
    check_age,
    check_order,
    check_windows,
)
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Order
from fedgpt2.types import ModelShape

SHAPE = ModelShape(n_layer=1, n_head=2, n_embd=8, block_size=16)
SCHEMA = SHAPE.schema()
FP32 = codec.get("fp32")
BODY = len(FP32.header(SCHEMA)) + FP32.data_bytes(SCHEMA)
STATE = BlobRef(digest="a" * 64, length=BODY, codec="fp32")
SHARE = Assignment(manifest="b" * 64, manifest_length=900, slot=0, pages=(3, 5), windows=((0, 1), (2,)))
ORDER = Order(
    run_id="c" * 64,
    round=4,
    attempt=0,
    sender="V",
    receiver="M",
    parent="d" * 64,
    model=SHAPE,
    state=(STATE,),
    assignment=SHARE,
    answer_codecs=("fp32",),
    caps=Caps(answer_bytes=BODY),
    budget_seconds=5.0,
)


def check(order, memory=1 << 40, limits=None):
    return check_order(order, "e" * 64, me="M", limits=limits or MinerLimits(), memory=memory)


def changed(**fields):
    return msgspec.structs.replace(ORDER, **fields)


def state(**fields):
    return changed(state=(msgspec.structs.replace(STATE, **fields),))


def share(**fields):
    return changed(assignment=msgspec.structs.replace(SHARE, **fields))


def model(**fields):
    return changed(model=dataclasses.replace(SHAPE, **fields))


def test_a_good_order_becomes_a_plan():
    plan = check(ORDER)
    assert (plan.order, plan.schema, plan.state_codec.name, plan.budget_seconds) == (ORDER, SCHEMA, "fp32", 5.0)
    assert plan.state == STATE
    assert plan.manifest == BlobRef(digest="b" * 64, length=900, codec="json")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_taken_on(preset):
    schema = PRESETS[preset].schema()
    size = len(FP32.header(schema)) + FP32.data_bytes(schema)
    order = changed(
        model=PRESETS[preset], state=(msgspec.structs.replace(STATE, length=size),), caps=Caps(answer_bytes=size)
    )
    assert check(order).schema == schema


REFUSALS = [
    (changed(receiver="X"), Reason.WRONG_RECEIVER),
    (changed(strategy="mine_bitcoin"), Reason.UNSUPPORTED_STRATEGY),
    (changed(budget_seconds=float("inf")), Reason.BAD_MESSAGE),
    (changed(budget_seconds=float("nan")), Reason.BAD_MESSAGE),
    (changed(answer_codecs=("zip", "int2")), Reason.UNSUPPORTED_CODEC),
    (changed(caps=Caps(answer_bytes=BODY - 1)), Reason.TOO_LARGE),
    (changed(state=(STATE, STATE)), Reason.UNSUPPORTED_CODEC),
    (state(codec="zip"), Reason.UNSUPPORTED_CODEC),
    (state(base="f" * 64), Reason.UNSUPPORTED_CODEC),
    (state(length=FP32.data_bytes(SCHEMA)), Reason.WRONG_STATE),
    (state(length=BODY + (2 << 20)), Reason.WRONG_STATE),
    (state(length=0), Reason.WRONG_STATE),
    (share(manifest_length=MANIFEST_BYTES + 1), Reason.TOO_LARGE),
    (share(manifest_length=0), Reason.TOO_LARGE),
    (share(windows=((0, 1),)), Reason.WRONG_ASSIGNMENT),
    (share(windows=((), ())), Reason.WRONG_ASSIGNMENT),
    (share(windows=((0, 0), (1,))), Reason.WRONG_ASSIGNMENT),
    (share(pages=(3, 3)), Reason.WRONG_ASSIGNMENT),
    *(
        (model(**fields), Reason.UNSUPPORTED_MODEL)
        for fields in (
            {"n_head": 3},
            {"n_head": 0},
            {"n_layer": 0},
            {"n_layer": 2**53},
            {"n_layer": -1},
            {"n_embd": 0},
            {"n_embd": 2**53, "n_head": 1},
            {"block_size": -5},
            {"block_size": 2**60},
            {"vocab_size": 50256},
            {"vocab_size": 2**40},
            {"n_layer": 1000, "n_embd": 4096},
        )
    ),
]


@pytest.mark.parametrize(("order", "reason"), REFUSALS)
def test_what_does_not_fit_is_refused_with_its_reason(order, reason):
    with pytest.raises(Refused) as refusal:
        check(order)
    assert refusal.value.reason is reason
    assert "\n" not in str(refusal.value)


def test_a_model_beyond_memory_or_limit_is_refused():
    with pytest.raises(Refused, match="this machine has") as refusal:
        check(ORDER, memory=2 * FP32.data_bytes(SCHEMA) - 1)
    assert refusal.value.reason is Reason.UNSUPPORTED_MODEL
    check(ORDER, memory=2 * FP32.data_bytes(SCHEMA))
    with pytest.raises(Refused, match=r"--limits\.model_parameters"):
        check(ORDER, limits=MinerLimits(model_parameters=1000))


def test_a_bf16_state_needs_room_beside_the_weights():
    bf16 = codec.get("bf16")
    order = state(codec="bf16", length=len(bf16.header(SCHEMA)) + bf16.data_bytes(SCHEMA))
    assert check(order).state_codec is bf16
    with pytest.raises(Refused):
        check(order, memory=2 * FP32.data_bytes(SCHEMA))


def test_a_budget_beyond_a_day_is_a_day():
    assert check(changed(budget_seconds=1e300)).budget_seconds == 86400.0


def test_the_first_known_answer_codec_is_taken():
    assert answer_codec(changed(answer_codecs=("zip", "bf16", "fp32")), SCHEMA).name == "bf16"


def test_windows_longer_than_the_models_context_are_refused():
    check_windows(ORDER, 16)
    with pytest.raises(Refused) as refusal:
        check_windows(ORDER, 17)
    assert refusal.value.reason is Reason.WRONG_ASSIGNMENT
    assert refusal.value.culprit is Culprit.VALIDATOR


ages = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(age=ages, newest=ages, same=st.booleans())
def test_only_newer_orders_and_the_same_one_pass(age, newest, same):
    attempt, round = age
    order = changed(attempt=attempt, round=round)
    work = "1" * 64
    taken = Taken(newest, work if same else "2" * 64)
    if age > newest or same:
        check_age(order, work, taken)
    else:
        with pytest.raises(Refused) as refusal:
            check_age(order, work, taken)
        assert refusal.value.reason is Reason.STALE_ORDER


def test_the_first_order_of_a_run_is_never_stale():
    check_age(ORDER, "1" * 64, None)


def test_a_miner_may_work_for_one_model_alone():
    order, others = changed(model=SHAPE), model(n_layer=SHAPE.n_layer + 1)
    here = {"me": "M", "limits": MinerLimits(), "memory": 1 << 40}
    assert check_order(order, "e" * 64, **here, only=SHAPE).order == order
    with pytest.raises(Refused, match=r"--model.preset has \d+") as refused:
        check_order(others, "e" * 64, **here, only=SHAPE)
    assert refused.value.reason is Reason.UNSUPPORTED_MODEL


def test_the_preset_of_a_miner_is_any_or_one_that_exists():
    assert MinerModel().shape is None
    assert MinerModel("tiny").shape == PRESETS["tiny"]
    with pytest.raises(UsageError, match="no such preset"):
        _ = MinerModel("giant").shape
