"""The hostile miner's answers, as a validator's own rules see them."""

import threading

import numpy as np
import pytest
import torch

from fedgpt2.aggregation.registry import RULES
from fedgpt2.cli.demo_miners import ADMISSIBLE, CYCLE
from fedgpt2.config import Gradient, Limits
from fedgpt2.errors import PeerError, Reason, Refused, UsageError
from fedgpt2.gradient.registry import build
from fedgpt2.link.blobs import Blob
from fedgpt2.miner.packer import ComputeResult
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Contribution, Order
from fedgpt2.protocol.tensors import PREFIX, read_header
from fedgpt2.simulate.attacks.registry import ALONE, NAMES
from fedgpt2.simulate.hostile import Hostile
from fedgpt2.types import ModelShape, WorkId
from fedgpt2.validator.admission import check_contribution, check_values

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=64)
EXACT = build(Gradient(precision="fp32"), torch.device("cpu"))
TEXT = np.arange(36, dtype=np.uint16).reshape(4, 9)
REFUSED = {
    "scale": Reason.NORM_BOUND,
    "nan": Reason.NON_FINITE,
    "inf": Reason.NON_FINITE,
    "stale": Reason.WRONG_PARENT,
    "oversize": Reason.TOO_LARGE,
    "wrong_names": Reason.WRONG_NAMES,
    "wrong_shapes": Reason.WRONG_SHAPE,
    "wrong_dtypes": Reason.WRONG_DTYPE,
    "late": Reason.LATE,
}


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
        caps=Caps(answer_bytes=1 << 20),
        budget_seconds=10.0,
    )


def weights(number: int) -> FlatState:
    """Those of a round."""
    return initialise(SHAPE, number)


def ask(hostile: Hostile, number: int, stop: threading.Event | None = None) -> tuple[Contribution, Blob]:
    """One order, as a miner's compute thread goes about it."""
    out = FlatState(SHAPE.schema())
    work = WorkId(f"{number + 1:064x}")
    result = hostile(GPT2(SHAPE, weights(number)), TEXT, out=out, stop=stop or threading.Event())
    return hostile.pack(order(number), work, ComputeResult(result.loss, result.tokens, 0.1), out)


def sent(blob: Blob) -> torch.Tensor:
    return torch.frombuffer(blob.data, dtype=torch.float32).clone()


def judge(number: int, contribution: Contribution, blob: Blob) -> Reason | None:
    try:
        check_contribution(order(number), WorkId(f"{number + 1:064x}"), contribution, Limits().header_bytes)
        read_header(blob.header[PREFIX:], SHAPE.schema(), "F32")
        check_values(FlatState(SHAPE.schema(), sent(blob)), Limits().gradient_norm)
    except PeerError as refusal:
        return refusal.reason
    return None


def gradient(at: FlatState, windows: np.ndarray) -> torch.Tensor:
    out = FlatState(SHAPE.schema())
    EXACT(GPT2(SHAPE, at), windows, out=out, stop=threading.Event())
    return out.flat


@pytest.mark.parametrize("name", ALONE)
def test_each_attack_meets_what_stops_it(name):
    hostile, stop = Hostile([name], EXACT), threading.Event()
    said: list[Reason | None] = []
    for number in (1, 2):
        if name == "late":
            stop.set()
            with pytest.raises(Refused) as caught:
                ask(hostile, number, stop)
            said.append(caught.value.reason)
        else:
            said.append(judge(number, *ask(hostile, number)))
    assert said == [REFUSED.get(name)] * 2


def test_the_demos_cycle_is_one_of_each_kind():
    hostile = Hostile(CYCLE, EXACT)
    said = [judge(number, *ask(hostile, number)) for number in range(1, len(CYCLE) + 2)]
    assert said == [*(REFUSED.get(name) for name in CYCLE), Reason.WRONG_SHAPE]
    assert {name for name in CYCLE if name not in REFUSED} == ADMISSIBLE
    assert set(CYCLE) <= set(ALONE)


def test_it_says_it_did_well_and_all_of_it():
    contribution, _ = ask(Hostile(["nan"], EXACT), 1)
    assert (contribution.claimed_loss, contribution.tokens) == (1.0, 32)


def test_who_sends_no_gradient_computes_none():
    def fail(*given: object, **more: object) -> None:
        pytest.fail("computed for nothing")

    for name in ("wrong_names", "wrong_shapes", "wrong_dtypes", "nan", "inf", "zero", "denormal", "stale", "oversize"):
        ask(Hostile([name], fail), 1)


def test_a_stale_answer_names_the_order_before():
    hostile = Hostile(["stale"], EXACT)
    ask(hostile, 1)
    assert ask(hostile, 2)[0].parent == order(1).parent


def test_a_flipped_sign_is_that_of_its_own_gradient():
    own = gradient(weights(1), TEXT)
    flipped = sent(ask(Hostile(["sign_flip"], EXACT), 1)[1])
    assert float(torch.cosine_similarity(flipped, -own, dim=0)) > 0.95
    assert float(flipped.norm() / own.norm()) == pytest.approx(5.0, rel=0.1)  # of one hostile among five


def test_a_scaled_gradient_is_of_random_tokens():
    wrong, million, bound = (sent(ask(Hostile([name], EXACT), 1)[1]) for name in ("wrong_data", "scale", "scale_bound"))
    assert torch.allclose(million, wrong * 1e6, rtol=1e-4)
    assert float(bound.norm()) == pytest.approx(999.0, rel=1e-4)
    assert float(torch.cosine_similarity(bound, wrong, dim=0)) > 0.9999


def test_what_it_replays_is_what_it_was_sent():
    hostile = Hostile(["replay_update", "replay_aggregate"], EXACT)
    ask(hostile, 1)
    replayed = sent(ask(hostile, 2)[1])
    update = weights(1).flat - weights(2).flat
    assert float(torch.cosine_similarity(replayed, update, dim=0)) > 0.9999
    assert float(replayed.norm()) == pytest.approx(median_norm(2), rel=1e-4)


def median_norm(number: int) -> float:
    """Of the gradients of the parts of its text."""
    return float(torch.stack([gradient(weights(number), window[None]).norm() for window in TEXT]).median())


def test_an_adaptive_one_takes_its_own_parts_for_the_honest():
    row = sent(ask(Hostile(["min_max"], EXACT), 1)[1])
    parts = torch.stack([gradient(weights(1), window[None]) for window in TEXT])
    limit = float(torch.cdist(parts, parts).max())
    assert float((parts - row).norm(dim=1).max()) == pytest.approx(limit, rel=0.1)
    out = torch.empty(len(row))
    assert len(RULES["default"]([*parts, row], None, 1, out).groups) == 5


def test_a_dripping_answer_gives_every_connection_a_sip():
    _, blob = ask(Hostile(["slow_drip"], EXACT), 1)
    whole = b"".join(bytes(part) for part in Blob(blob.ref, blob.header, blob.data).slices())
    assert blob.ref.length == len(whole)
    had, sips = 0, 0
    while had < len(whole) - 1:
        (sip,) = blob.slices(had)
        assert bytes(sip) == whole[had : had + len(sip)]
        assert 0 < len(sip) <= 4096
        had, sips = had + len(sip), sips + 1
    assert sips > 8
    assert [bytes(sip) for sip in blob.slices(had)] == [b""]


def test_the_same_work_is_answered_the_same_way_by_another_process():
    one, other = (ask(Hostile(["gaussian"], EXACT), 1)[1].ref for _ in range(2))
    assert one == other


@pytest.mark.parametrize("name", [*sorted(set(NAMES) - set(ALONE)), "flip"])
def test_an_attack_that_needs_others_is_a_bad_flag(name):
    with pytest.raises(UsageError, match=f"--attack {name}: no attack of a miner alone; one of sign_flip, "):
        Hostile([name], EXACT)
