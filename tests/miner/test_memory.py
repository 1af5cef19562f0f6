"""The two large buffers: what is a view of what, and what is refused before it is taken."""

import pytest
import torch

from fedgpt2 import codec
from fedgpt2.config import MinerLimits
from fedgpt2.errors import ProtocolError, Reason, Refused
from fedgpt2.miner.delivery import BlobCache
from fedgpt2.miner.memory import Memory, StateReceiver
from fedgpt2.miner.orders import Plan
from fedgpt2.miner.packer import ComputeResult, HonestEncoder
from fedgpt2.model.gpt2 import initialise

from .test_orders import ORDER, SCHEMA, SHAPE

FP32 = codec.get("fp32")
TEXT = FP32.header(SCHEMA)[8:]
LENGTH = FP32.longest_body(SCHEMA)
PLAN = Plan(ORDER, "e" * 64, SCHEMA, FP32, 5.0)


def test_fp32_weights_are_the_received_bytes_themselves():
    memory = Memory(SCHEMA)
    landing = StateReceiver(memory, FP32, LENGTH)
    place = landing.open(TEXT)
    place[:] = initialise(SHAPE, 1).memory()
    weights = landing.weights()
    assert torch.equal(weights.flat, initialise(SHAPE, 1).flat)
    place[0:4] = b"\0\0\0\0"
    assert weights.flat[0] == 0
    assert StateReceiver(memory, FP32, LENGTH).open(TEXT).obj is not None
    assert memory.body(FP32).nbytes == 4 * weights.flat.numel()
    assert memory.weights(FP32, landing._layout).flat.data_ptr() == weights.flat.data_ptr()


def test_bf16_is_widened_into_one_buffer_used_again():
    memory, bf16 = Memory(SCHEMA), codec.get("bf16")
    landing = StateReceiver(memory, bf16, bf16.longest_body(SCHEMA))
    landing.open(bf16.header(SCHEMA)[8:])[:] = bf16.encode(initialise(SHAPE, 1).flat)
    weights = landing.weights()
    assert torch.equal(weights.flat, initialise(SHAPE, 1).flat.bfloat16().float())
    assert landing.weights().flat.data_ptr() == weights.flat.data_ptr()


def test_an_fp32_gradient_is_sent_from_where_it_was_computed():
    memory = Memory(SCHEMA)
    contribution, blob = HonestEncoder().pack(ORDER, "e" * 64, ComputeResult(1.5, 48, 0.2), memory.gradient)
    memory.gradient.flat[0] = 1.0
    assert bytes(blob.data[:4]) == torch.tensor([1.0]).numpy().tobytes()
    assert contribution.blob == blob.ref
    assert (contribution.sender, contribution.receiver) == (ORDER.receiver, ORDER.sender)


def test_a_header_of_another_model_opens_nothing():
    landing = StateReceiver(Memory(SCHEMA), FP32, LENGTH)
    with pytest.raises(ProtocolError) as refusal:
        landing.open(b"{}")
    assert refusal.value.reason is Reason.WRONG_NAMES
    with pytest.raises(Refused) as refusal:
        landing.weights()
    assert refusal.value.reason is Reason.WRONG_STATE


def test_no_memory_for_a_body_is_a_refusal(monkeypatch):
    memory = Memory(SCHEMA)

    def no_memory(*_arguments, **_settings):
        raise MemoryError

    monkeypatch.setattr(torch, "empty", no_memory)
    with pytest.raises(Refused) as refusal:
        memory.body(FP32)
    assert refusal.value.reason is Reason.UNSUPPORTED_MODEL


async def test_a_shelf_keeps_what_the_next_order_names_again():
    shelf = BlobCache(MinerLimits())
    state, manifest = shelf.state(PLAN), shelf.manifest(PLAN)
    assert (shelf.state(PLAN), shelf.manifest(PLAN)) == (state, manifest)
    with pytest.raises(Refused) as refusal:
        _ = state.blob
    assert refusal.value.reason is Reason.UNKNOWN_BLOB


async def test_another_state_takes_over_the_buffer_and_shuts_the_older_upload_out():
    import msgspec

    shelf = BlobCache(MinerLimits())
    older = shelf.state(PLAN)
    turn = older.incoming.claim()
    other = msgspec.structs.replace(ORDER, state=(msgspec.structs.replace(ORDER.state[0], digest="7" * 64),))
    newer = shelf.state(Plan(other, "f" * 64, SCHEMA, FP32, 5.0))
    assert newer.memory is older.memory
    assert not older.incoming.held(turn)
