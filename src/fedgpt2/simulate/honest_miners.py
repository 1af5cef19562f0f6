"""Honest miners of a simulation: their gradients, computed one after the other by one model, each into its own body.

What an honest miner does may be replaced, miner by miner, by a `Behaviour`: fewer windows than asked for, old weights,
other labels, no answer every now and then. That is the seam for studies of what such miners are worth:

    def half(task: Task) -> Tensor:
        return task.gradient(task.weights, task.windows[: len(task.windows) // 2])

    simulate(config, behaviours={0: half})

Letters: h honest miners, d parameters.
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from fedgpt2 import codec
from fedgpt2.codec import Codec
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import Reason, Refused
from fedgpt2.gradient.strategy import Strategy
from fedgpt2.link.blobs import Blob
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Order
from fedgpt2.protocol.tensors import PREFIX
from fedgpt2.types import ModelShape, Schema

__all__ = ["Behaviour", "Engine", "HonestMiners", "Task", "as_asked"]

_LINE = 64  # bytes: rows begin on a cache line
_BLOCK = 1 << 16  # values of each row at a time, so that all rows of a block stay in the cache


@dataclass(frozen=True)
class Task:
    """What one honest miner is asked in one round, and all it needs to answer."""

    round: int
    order: Order
    weights: Float32[Tensor, " d"]  # the broadcast weights; not to be written to, and to be copied to be kept
    windows: Tokens  # those assigned, uint16 [n, seq_len + 1]
    gradient: Callable[[Float32[Tensor, " d"], Tokens], Float32[Tensor, " d"]]  # at any weights, on any windows
    rng: torch.Generator  # seeded by run, miner and round


Behaviour = Callable[[Task], Tensor | None]
"""A miner's gradient, fp32 [d]; None when it cannot be reached this round. It may raise a PeerError instead."""


class Engine:
    """Gradients at any weights, on any windows."""

    def __init__(self, shape: ModelShape, strategy: Strategy, device: torch.device) -> None:
        self.schema = shape.schema()
        self._strategy = strategy
        self._device = device
        self._model = GPT2(shape, FlatState(self.schema).to(device))

    def __call__(self, weights: FlatState, windows: Tokens, out: FlatState, halt: threading.Event) -> float:
        """Fill `out` with the mean gradient over `windows`; returns the mean loss, nats a token.

        Raises Refused: cancelled soon after `halt` is set, compute_failed where the loss is no number.
        """
        self._model.bind(weights.to(self._device))
        loss = self._strategy(self._model, windows, out=out, stop=halt).loss
        if not math.isfinite(loss):
            raise Refused(Reason.COMPUTE_FAILED, f"the miner says: the loss is {loss}")
        return loss

    def fresh(self, weights: Float32[Tensor, " d"], windows: Tokens, halt: threading.Event) -> Float32[Tensor, " d"]:
        """The gradient, in memory of its own."""
        out = FlatState(self.schema)
        self(FlatState(self.schema, weights), windows, out, halt)
        return out.flat


class HonestMiners:
    """h honest miners: a row of fp32 values each, allocated once, that holds what the miner last sent."""

    def __init__(
        self, miners: int, engine: Engine, state: Codec, answer: Codec, behaviours: Mapping[int, Behaviour]
    ) -> None:
        """`behaviours` are by place among the honest."""
        self._engine = engine
        self._answer = answer
        self._behaviours = behaviours
        self._decoded = FlatState(engine.schema) if state.name != "fp32" else None
        self._bodies = _rows(miners, engine.schema)
        self._answered: list[int] = []

    @property
    def answered(self) -> int:
        """How many have, so far in this round."""
        return len(self._answered)

    def weights(self, blob: Blob) -> FlatState:
        """The weights in a state blob, as every miner decodes them; fp32 is the blob's own memory."""
        which, schema = codec.get(blob.ref.codec), self._engine.schema
        layout = which.open(blob.header[PREFIX:], schema, blob.data.nbytes)
        out = None if self._decoded is None else self._decoded.flat
        return FlatState(schema, which.decode(layout, schema, blob.data, out))

    def begin(self) -> None:
        """Start a round, in which nobody has answered yet."""
        self._answered = []

    def body(self, place: int) -> memoryview:
        """The memory of one miner's data region."""
        return self._bodies[place].view(torch.uint8).numpy().data

    def answer(
        self,
        place: int,
        round_: int,
        order: Order,
        weights: FlatState,
        windows: Tokens,
        rng: torch.Generator,
        halt: threading.Event,
    ) -> tuple[Blob, float] | None:
        """One miner's body and the loss it claims; None when it does not answer. Raises PeerError."""
        out = FlatState(self._engine.schema, self._bodies[place])
        losses: list[float] = []

        def gradient(at: Tensor, on: Tokens) -> Tensor:
            state = weights if at is weights.flat else FlatState(self._engine.schema, at)
            losses.append(self._engine(state, on, out, halt))
            return out.flat

        task = Task(round_, order, weights.flat, windows, gradient, rng)
        values = self._behaviours.get(place, as_asked)(task)
        if values is None:
            return None
        if values is not out.flat:
            out.flat.copy_(values)
        self._answered.append(place)
        body = self._answer.write(self._engine.schema, out.flat)
        if not self._answer.exact:
            layout = self._answer.open(body.header[PREFIX:], self._engine.schema, body.data.nbytes)
            self._answer.decode(layout, self._engine.schema, body.data, out.flat)
        return Blob.of(self._answer.name, body.header, body.data), losses[-1] if losses else 0.0

    def gradients(self) -> Float32[Tensor, "h d"]:
        """What those who answered sent, fp32, in order: a view of their bodies where all of them did, in fp32."""
        return self._sent().float()

    def cosine(self, aggregate: Float32[Tensor, " d"]) -> float | None:
        """Cosine of `aggregate` to the mean of what those who answered sent; None where one of the two is nothing."""
        rows = self._sent()
        dot = own = other = 0.0
        for start in range(0, aggregate.numel() if len(rows) else 0, _BLOCK):
            mean = rows[:, start : start + _BLOCK].float().mean(0).double()
            part = aggregate[start : start + _BLOCK].double()
            dot, own, other = dot + float(mean @ part), own + float(mean @ mean), other + float(part @ part)
        lengths = math.sqrt(own) * math.sqrt(other)
        return dot / lengths if math.isfinite(lengths) and lengths > 0 else None

    def _sent(self) -> Tensor:
        whole = len(self._answered) == len(self._bodies)
        return self._bodies if whole else self._bodies[sorted(self._answered)]


def as_asked(task: Task) -> Tensor:
    """What a miner does by default: the gradient at the weights sent, over all windows assigned."""
    return task.gradient(task.weights, task.windows)


def _rows(miners: int, schema: Schema) -> Float32[Tensor, "h d"]:
    """Room for what each miner sends, fp32, untouched until used."""
    d = sum(math.prod(shape) for shape in schema.values())
    line = _LINE // torch.float32.itemsize
    return torch.empty(miners, -(-d // line) * line)[:, :d]
