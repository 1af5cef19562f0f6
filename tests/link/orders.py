"""A small model's order, a miner's answers to it, and the one way to see what becomes of them over any link."""

import torch
from bittensor.sp_core import Keypair

from fedgpt2 import codec
from fedgpt2.config import Limits
from fedgpt2.identity.signing import Signer
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.link.base import ConnectedMiner, IssuedOrder, OrderResult
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.digests import work_id
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Contribution, Order
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Hotkey, ModelShape
from fedgpt2.validator.collector import Collector

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=16)
SCHEMA = SHAPE.schema()
VALIDATOR = Signer(Keypair.create_from_uri("//Validator"))
MINER = Signer(Keypair.create_from_uri("//Miner0"))
OTHER = Signer(Keypair.create_from_uri("//Miner1"))
FP32 = codec.get("fp32")
SIZE = FP32.data_bytes(SCHEMA)
LIMITS = Limits(header_bytes=4096)
STATE = Blob.of("fp32", b"", memoryview(b"state"))
CONNECTED = ConnectedMiner(Hotkey(MINER.hotkey), "axon")


def issue(**changes) -> IssuedOrder:
    """An order to MINER, with fields replaced."""
    fields = {
        "run_id": "ab" * 32,
        "round": 3,
        "attempt": 0,
        "sender": VALIDATOR.hotkey,
        "receiver": MINER.hotkey,
        "parent": "cd" * 32,
        "model": SHAPE,
        "state": (STATE.ref,),
        "assignment": Assignment(manifest="01" * 32, manifest_length=9, slot=0, pages=(0,), windows=((0, 1),)),
        "answer_codecs": ("fp32", "bf16"),
        "caps": Caps(answer_bytes=SIZE + LIMITS.header_bytes),
        "budget_seconds": 5.0,
    }
    order = Order(**(fields | changes))
    envelope = VALIDATOR.seal("order", order)
    return IssuedOrder(CONNECTED, order, envelope, work_id(envelope.payload), 64)


def gradient(fill: float = 1e-2) -> Blob:
    """A body of equal values."""
    data = memoryview(bytearray(FP32.encode(torch.full((SIZE // 4,), fill)))).cast("B")
    return Blob.of("fp32", FP32.header(SCHEMA), data)


def contribution(issued: IssuedOrder, blob: BlobRef, **changes) -> Contribution:
    """The contribution that answers an order with a blob, with fields replaced."""
    fields = {
        "run_id": issued.order.run_id,
        "round": issued.order.round,
        "work_id": issued.work_id,
        "parent": issued.order.parent,
        "sender": issued.order.receiver,
        "receiver": issued.order.sender,
        "blob": blob,
        "claimed_loss": 9.5,
        "tokens": issued.tokens,
        "seconds": 0.1,
    }
    return Contribution(**(fields | changes))


async def collect(link, issued: IssuedOrder) -> OrderResult:
    """What a collector makes of an order over the link."""
    collector = Collector(VALIDATOR, Outbox(), MemoryPool().lease, lambda _line: None)
    collector.connect(link)
    (result,) = await collector.collect([issued], {STATE.ref.digest: STATE}, deadline=60.0, quorum=1)
    await collector.close()
    return result
