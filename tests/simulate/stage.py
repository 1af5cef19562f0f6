"""A round for attacks: synthetic gradients, real orders, the validator's own checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedgpt2 import codec
from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.aggregation.registry import pipeline
from fedgpt2.config import Limits
from fedgpt2.errors import PeerError, Reason
from fedgpt2.link.base import ConnectedMiner, IssuedOrder, OrderResult, ReceivedContribution
from fedgpt2.link.receive import check_contribution
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Contribution, Envelope, Order
from fedgpt2.protocol.tensors import PREFIX, read_header
from fedgpt2.simulate.attacks.base import Attack, RoundView, Submission
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Digest, Hotkey, ModelShape, WorkId
from fedgpt2.validator.admission import admit

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=64)
SCHEMA = SHAPE.schema()
D = codec.get("fp32").data_bytes(SCHEMA) // 4
DEFAULT = pipeline("default")
WORK = WorkId("e" * 64)


def order(number: int, miner: int, answer: str = "fp32") -> Order:
    """The order of a hostile miner in a round."""
    return Order(
        run_id="a" * 64,
        round=number,
        attempt=0,
        sender="validator",
        receiver=f"hostile {miner}",
        parent=f"{number:064x}",
        model=SHAPE,
        state=(BlobRef(digest="b" * 64, length=100, codec="fp32"),),
        assignment=Assignment(manifest="c" * 64, manifest_length=2, slot=miner, pages=(0,), windows=((0, 1),)),
        answer_codecs=(answer,),
        caps=Caps(answer_bytes=codec.get(answer).data_bytes(SCHEMA) + 4096),
        budget_seconds=10.0,
    )


@dataclass
class Stage:
    """Rounds of 9 honest and 3 hostile miners; records every gradient that an attack computes."""

    f: int = 3
    h: int = 9
    noise: float = 2.0
    pipeline: Pipeline | None = DEFAULT
    answer: str = "fp32"
    asked: list[tuple[torch.Tensor, np.ndarray]] = field(default_factory=list)

    def weights(self, number: int) -> torch.Tensor:
        """[d]: another random walk step each round."""
        steps = [self._drawn(100 + k) for k in range(number + 1)]
        return torch.stack(steps).sum(0)

    def aggregate(self, number: int) -> torch.Tensor:
        """The aggregate of round `number`."""
        return self._drawn(200 + number)

    def honest(self, number: int) -> torch.Tensor:
        """[h, d]: one signal, and noise `noise` times as long."""
        signal = self._drawn(300 + number)
        return torch.stack([signal + self.noise * self._drawn(1000 * number + 400 + i) for i in range(self.h)])

    def windows(self, miner: int) -> np.ndarray:
        """Two windows of 16 tokens."""
        return np.arange(34, dtype=np.uint16).reshape(2, 17) + miner

    def gradient(self, weights: torch.Tensor, windows: np.ndarray) -> torch.Tensor:
        """Some function of both."""
        self.asked.append((weights, windows))
        return self._drawn(int(windows.astype(np.int64).sum()) * 7 + windows.size) + 0.01 * weights

    def view(self, number: int, shares: Sequence[float] | None = None) -> RoundView:
        """Round `number`, from 1."""
        return RoundView(
            round=number,
            orders=tuple(order(number, i, self.answer) for i in range(self.f)),
            weights=self.weights(number),
            before=self.weights(number - 1) if number > 1 else None,
            aggregate=self.aggregate(number - 1) if number > 1 else None,
            shares=tuple(shares or [1 / 12] * self.f),
            honest=lambda: self.honest(number),
            gradient=self.gradient,
            windows=self.windows,
            defence=self.defend,
            rng=torch.Generator().manual_seed(number),
            pipeline=self.pipeline,
        )

    def defend(self, rows: torch.Tensor, f: int) -> torch.Tensor:
        """The rule as a function."""
        out = torch.empty(rows.shape[1])
        (self.pipeline or DEFAULT)(list(rows), None, f, out)
        return out

    @staticmethod
    def _drawn(seed: int) -> torch.Tensor:
        row = torch.randn(D, generator=torch.Generator().manual_seed(seed))
        return row / row.norm()


def rows(replies: Sequence[Submission | PeerError]) -> torch.Tensor:
    """The values sent, [f, d], copied."""
    sent = [reply for reply in replies if isinstance(reply, Submission)]
    assert len(sent) == len(replies)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[sent[0].codec]
    return torch.stack([torch.frombuffer(reply.data, dtype=dtype).float() for reply in sent])


def play(attack: Attack, stage: Stage, rounds: int) -> list[torch.Tensor]:
    """The rows sent in each of so many rounds."""
    return [rows(attack(stage.view(number))) for number in range(1, rounds + 1)]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two rows."""
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0))


def judged(view: RoundView, replies: Sequence[Submission | PeerError]) -> list[Reason | None]:
    """What the validator makes of each answer: a reason, or None for one it admits."""
    results = [_received(order, reply) for order, reply in zip(view.orders, replies, strict=True)]
    verdicts = admit(results, Limits(), MemoryPool().lease)
    return [verdict.failure.reason if verdict.failure else None for verdict in verdicts]


def _received(order: Order, reply: Submission | PeerError) -> OrderResult:
    envelope = Envelope(kind="order", payload="{}", signer="validator", signature="0" * 128)
    issued = IssuedOrder(ConnectedMiner(Hotkey(order.receiver), "axon"), order, envelope, WORK, 32)
    if isinstance(reply, PeerError):
        return OrderResult(issued, failure=reply)
    try:
        return OrderResult(issued, _opened(order, reply), answered=True)
    except PeerError as failure:
        return OrderResult(issued, failure=failure, answered=True)


def _opened(order: Order, reply: Submission) -> ReceivedContribution:
    length = len(reply.header) + reply.data.nbytes
    blob = BlobRef(digest=blob_digest(reply.header, reply.data), length=length, codec=reply.codec)
    contribution = Contribution(
        run_id=order.run_id,
        round=order.round,
        work_id=WORK,
        parent=reply.parent,
        sender=order.receiver,
        receiver=order.sender,
        blob=blob,
        claimed_loss=1.0,
        tokens=32,
        seconds=0.1,
    )
    check_contribution(order, WORK, contribution, Limits().header_bytes)
    layout = read_header(reply.header[PREFIX:], SCHEMA, codec.get(reply.codec).dtype)
    assert layout.data_bytes == reply.data.nbytes
    return ReceivedContribution(contribution, layout, reply.data)


def moved(view: RoundView, **changes: object) -> RoundView:
    """The view with other values."""
    return replace(view, **changes)


__all__ = ["SCHEMA", "SHAPE", "D", "Digest", "Stage", "cosine", "judged", "moved", "order", "play", "rows"]
