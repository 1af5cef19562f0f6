"""Liars of the arena as real miners: processes with keys and sockets, told apart by nothing but what they send.

A real miner sees its own orders, the weights it is sent and the text it is assigned. What the arena's liars know of
others is made up from that: honest gradients are its own, on each of up to four parts of its text; the last aggregate
is the last change of the weights; its weight in it is taken to be that of an honest miner, the rule to be the default.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec
import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from fedgpt2.aggregation.pipeline import PIPELINES
from fedgpt2.errors import PeerError, Reason, Refused, UsageError
from fedgpt2.gradient.strategy import Result, Strategy
from fedgpt2.link.blobs import Blob
from fedgpt2.miner.packer import ComputeResult, describe
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Contribution, Order
from fedgpt2.simulate.attacks.base import Attack, RoundView, Submission
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.simulate.attacks.names import ALONE
from fedgpt2.simulate.attacks.registry import liars
from fedgpt2.types import ModelShape, WorkId

__all__ = ["Hostile"]

_PARTS = 4  # of its text, to guess from how far honest gradients lie apart
_SIP = 1 << 12  # most bytes of an answer a connection, before it falls silent
_BOAST = 1.0  # the loss it claims


class Hostile:
    """Both ends of a hostile miner: the `Strategy`, which records the order, and the `AnswerEncoder`, which attacks."""

    def __init__(self, attacks: Sequence[str], strategy: Strategy) -> None:
        """`attacks` of `names.ALONE`, used in turn, one an order; `strategy` computes what they need.

        Raises UsageError for a name that is none of them.
        """
        for name in attacks:
            if name not in ALONE:
                raise UsageError(f"--attack {name}: no attack of a miner alone; one of {', '.join(ALONE)}")
        self._names = tuple(attacks)
        self._strategy = strategy
        self._liars: Mapping[str, Attack] = {name: liars(name) for name in attacks}
        self._turn = 0
        self._before: Tensor | None = None
        self._task: _Task | None = None

    def __call__(
        self, model: GPT2, windows: Shaped[np.ndarray, "n l"], *, out: FlatState, stop: threading.Event
    ) -> Result:
        """Remember what the order was about; `out` is left to itself, and the loss is one to be proud of."""
        weights = model.weights.to("cpu")
        if self._task is not None and not torch.equal(self._task.weights, weights.flat):
            self._before = self._task.weights
        self._task = _Task(self._strategy, model.shape, model.device, weights.flat.clone(), windows, stop)
        return Result(_BOAST, windows.shape[0] * (windows.shape[1] - 1))

    def pack(
        self, order: Order, work_id: WorkId, result: ComputeResult, gradient: FlatState
    ) -> tuple[Contribution, Blob]:
        """As `AnswerEncoder` says, but for what is sent; who is late waits until it is told to stop."""
        if self._task is None:
            raise Refused(Reason.COMPUTE_FAILED, "nothing was asked")
        name = self._names[self._turn % len(self._names)]
        self._turn += 1
        scene = self._task.scene(order, work_id, self._before)
        if name == "slow_drip":
            return _drip(order, work_id, result, seal(order, self._task.gradient(scene.weights, self._task.windows)))
        (reply,) = self._liars[name](scene)
        if isinstance(reply, PeerError):
            self._task.stop.wait()
            raise reply
        blob = Blob.of(reply.codec, reply.header, reply.data, threads=torch.get_num_threads())
        contribution = describe(order, work_id, result, blob.ref)
        return msgspec.structs.replace(contribution, parent=reply.parent), blob


@dataclass(frozen=True)
class _Task:
    """What one order is about."""

    strategy: Strategy
    shape: ModelShape
    device: torch.device
    weights: Float32[Tensor, " d"]
    windows: Shaped[np.ndarray, "n l"]
    stop: threading.Event

    def gradient(self, weights: Float32[Tensor, " d"], windows: Shaped[np.ndarray, "n l"]) -> Float32[Tensor, " d"]:
        """At any weights, on any windows. Raises Refused(cancelled) soon after the order is called off."""
        schema = self.shape.schema()
        out = FlatState(schema)
        model = GPT2(self.shape, FlatState(schema, weights).to(self.device))
        self.strategy(model, windows, out=out, stop=self.stop)
        return out.flat

    def honest(self) -> Float32[Tensor, "h d"]:
        """Gradients of the parts of its own text."""
        parts = np.array_split(self.windows, min(_PARTS, len(self.windows)))
        return torch.stack([self.gradient(self.weights, part) for part in parts])

    def scene(self, order: Order, work_id: WorkId, before: Tensor | None) -> RoundView:
        """The round, as far as it can be guessed."""

        def defence(rows: Tensor, f: int) -> Tensor:
            out = torch.empty(rows.shape[1])
            PIPELINES["default"](list(rows), None, f, out)
            return out

        return RoundView(
            round=order.round,
            orders=(order,),
            weights=self.weights,
            before=before,
            aggregate=None if before is None else before - self.weights,
            shares=(1.0 / (1 + min(_PARTS, len(self.windows))),),
            honest=self.honest,
            gradient=self.gradient,
            windows=lambda i: self.windows,
            defence=defence,
            rng=torch.Generator().manual_seed(int(work_id[:15], 16)),
            pipeline=PIPELINES["default"],
        )


class _Drip(Blob):
    """A blob of which every connection gets a little more, at most half of what is left, and then nothing."""

    def slices(self, start: int = 0) -> Iterator[memoryview]:
        """The next sip; the connection stays open."""
        for part in islice(super().slices(start), 1):
            yield part[: min(_SIP, (self.ref.length - start) // 2)]


def _drip(order: Order, work_id: WorkId, result: ComputeResult, reply: Submission) -> tuple[Contribution, Blob]:
    whole = Blob.of(reply.codec, reply.header, reply.data, threads=torch.get_num_threads())
    return describe(order, work_id, result, whole.ref), _Drip(whole.ref, whole.header, whole.data)
