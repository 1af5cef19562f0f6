"""The arena's attacks by a real miner: a process with a key and an axon that differs only in what it sends.

A real miner sees its own orders, the weights it receives and its assigned text. The rest of a `RoundView` is estimated:
the honest gradients are its own, on each of up to four parts of its text; the last aggregate is the last change of the
weights; its weight in it is that of an honest miner; the rule is the default one.
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

from fedgpt2.aggregation.registry import pipeline
from fedgpt2.errors import PeerError, Reason, Refused, UsageError
from fedgpt2.gradient.strategy import Result, Strategy
from fedgpt2.link.blobs import Blob
from fedgpt2.miner.packer import ComputeResult, describe
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Contribution, Order
from fedgpt2.simulate.attacks.base import Attack, RoundView, Submission
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.simulate.attacks.registry import ALONE, FLAG, build_attack
from fedgpt2.types import ModelShape, WorkId

__all__ = ["Hostile"]

_PARTS = 4  # of its text: their gradients stand for those of honest miners
_DRIP = 1 << 12  # most bytes of a body that one connection gets
_CLAIMED_LOSS = 1.0


class Hostile:
    """A hostile miner's `Strategy`, which records the order, and its `AnswerEncoder`, which attacks."""

    def __init__(self, attacks: Sequence[str], strategy: Strategy) -> None:
        """`attacks` of `registry.ALONE`, or import paths, used in turn, one per order; `strategy` computes gradients.

        Raises UsageError for another name.
        """
        for name in attacks:
            if name not in ALONE and ":" not in name:
                raise UsageError(f"{FLAG} {name}: no attack of a miner alone; one of {', '.join(ALONE)}")
        self._names = tuple(attacks)
        self._strategy = strategy
        self._attacks: Mapping[str, Attack] = {name: build_attack(name) for name in attacks}
        self._turn = 0
        self._before: Tensor | None = None
        self._task: _Task | None = None

    def __call__(
        self, model: GPT2, windows: Shaped[np.ndarray, "n l"], *, out: FlatState, stop: threading.Event
    ) -> Result:
        """Record weights and windows of the order; `out` stays as it is, and the claimed loss is made up."""
        weights = model.weights.to("cpu")
        if self._task is not None and not torch.equal(self._task.weights, weights.flat):
            self._before = self._task.weights
        self._task = _Task(self._strategy, model.shape, model.device, weights.flat.clone(), windows, stop)
        return Result(_CLAIMED_LOSS, windows.shape[0] * (windows.shape[1] - 1))

    def pack(
        self, order: Order, work_id: WorkId, result: ComputeResult, gradient: FlatState
    ) -> tuple[Contribution, Blob]:
        """See `AnswerEncoder`; sends what the attack gives, and waits for the stop event where it sends nothing."""
        if self._task is None:
            raise Refused(Reason.COMPUTE_FAILED, "there is no order")
        name = self._names[self._turn % len(self._names)]
        self._turn += 1
        view = self._task.view(order, work_id, self._before)
        if name == "slow_drip":
            return _drip(order, work_id, result, seal(order, self._task.gradient(view.weights, self._task.windows)))
        (reply,) = self._attacks[name](view)
        if isinstance(reply, PeerError):
            self._task.stop.wait()
            raise reply
        blob = Blob.of(reply.codec, reply.header, reply.data, threads=torch.get_num_threads())
        contribution = describe(order, work_id, result, blob.ref)
        return msgspec.structs.replace(contribution, parent=reply.parent), blob


@dataclass(frozen=True)
class _Task:
    """One order, and what its attack may compute."""

    strategy: Strategy
    shape: ModelShape
    device: torch.device
    weights: Float32[Tensor, " d"]
    windows: Shaped[np.ndarray, "n l"]
    stop: threading.Event

    def gradient(self, weights: Float32[Tensor, " d"], windows: Shaped[np.ndarray, "n l"]) -> Float32[Tensor, " d"]:
        """The gradient at any weights, on any windows. Raises Refused (cancelled) soon after the stop event."""
        schema = self.shape.schema()
        out = FlatState(schema)
        model = GPT2(self.shape, FlatState(schema, weights).to(self.device))
        self.strategy(model, windows, out=out, stop=self.stop)
        return out.flat

    def honest(self) -> Float32[Tensor, "h d"]:
        """Gradients over the parts of its own text."""
        parts = np.array_split(self.windows, min(_PARTS, len(self.windows)))
        return torch.stack([self.gradient(self.weights, part) for part in parts])

    def view(self, order: Order, work_id: WorkId, before: Tensor | None) -> RoundView:
        """The round, as far as the miner can estimate it."""
        rule = pipeline("default")

        def defence(rows: Tensor, f: int) -> Tensor:
            out = torch.empty(rows.shape[1])
            rule(list(rows), None, f, out)
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
            pipeline=rule,
        )


class _Drip(Blob):
    """A blob that gives every connection a few bytes, at most half of the rest, and then keeps it open."""

    def slices(self, start: int = 0) -> Iterator[memoryview]:
        """The next few bytes."""
        for part in islice(super().slices(start), 1):
            yield part[: min(_DRIP, (self.ref.length - start) // 2)]


def _drip(order: Order, work_id: WorkId, result: ComputeResult, reply: Submission) -> tuple[Contribution, Blob]:
    whole = Blob.of(reply.codec, reply.header, reply.data, threads=torch.get_num_threads())
    return describe(order, work_id, result, whole.ref), _Drip(whole.ref, whole.header, whole.data)
