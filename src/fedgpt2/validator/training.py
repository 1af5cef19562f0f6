"""The training state: weights, optimizer, and what is measured on them. Off the event loop, all of it."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedgpt2 import codec
from fedgpt2.config import ValidatorConfig
from fedgpt2.errors import CheckpointError, SetupError
from fedgpt2.gradient.exact import Exact
from fedgpt2.link.blobs import Blob
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.hardware import native_precision
from fedgpt2.model.loss import mean_loss
from fedgpt2.model.state import FlatState
from fedgpt2.optim.schedule import learning_rate
from fedgpt2.optim.server import build
from fedgpt2.protocol.digests import model_digest
from fedgpt2.protocol.round_record import BaselineVector
from fedgpt2.ranking.credit import RECENT
from fedgpt2.storage.checkpoints import Checkpoint
from fedgpt2.types import Digest, Schema

__all__ = ["Snapshot", "Training"]

T = TypeVar("T")

_EVAL_TOKENS = 4096  # tokens of one forward pass when measuring a loss
_SCORING_TOKENS = 1024  # of one forward and backward pass for the scoring gradient: it is the validator's memory


@dataclass(frozen=True)
class Snapshot:
    """The weights as they are broadcast this round: their digest, and the body all miners share."""

    model: Digest
    blob: Blob


class Training:
    """Weights, gradient and moments, each one buffer allocated once.

    `weights` is what the optimizer moves, on `device`; `broadcast` is what miners hold, on the CPU: the same values
    through the state codec. On a CPU with fp32 both are the same memory, and so is the body that is sent.
    """

    def __init__(self, config: ValidatorConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.weights = initialise(config.model.shape, config.run.seed).to(device)
        self.optimizer = build(config.optimizer, self.weights)
        self.codec = codec.get(config.codec.state)
        schema = self.weights.schema
        self._schema = dict(schema)
        same = self.codec.exact and device.type == "cpu"
        self._broadcast = self.weights if same else FlatState(schema)
        self._body = self.codec.buffer(self._broadcast.flat)
        self._aggregate = FlatState(schema)
        self._gradient = self._aggregate if device.type == "cpu" else self.weights.empty_like()
        self._candidate: FlatState | None = None
        self._scoring: FlatState | None = None  # made by the first scoring gradient
        self._recent = [FlatState(schema) for _ in range(_kept_aggregates(config))]  # the last one first
        self._remembered = 0  # of them that hold one
        self._model = GPT2(config.model.shape, self._broadcast.to(device))
        self._digest: Digest | None = None
        self._stale = True

    def snapshot(self) -> Snapshot:
        """Encode and digest the weights once, for all miners."""
        body = self.codec.write(self._schema, self._refresh().flat, self._body)
        return Snapshot(self.digest(), Blob.of(self.codec.name, body.header, body.data, threads=2))

    def digest(self) -> Digest:
        """Digest of the broadcast weights."""
        if self._digest is None:
            self._digest = model_digest(self._schema, self._refresh().memory(), threads=2)
        return self._digest

    def _refresh(self) -> FlatState:
        """Bring the broadcast weights up to the optimizer's."""
        if self._broadcast is not self.weights and self._stale:
            self._broadcast.copy_(self.weights)
            self.codec.round_(self._broadcast.flat, self._body)
            self._stale = False
        return self._broadcast

    def loss(self, windows: np.ndarray) -> float:
        """Loss of the broadcast weights on windows [n, seq_len + 1], nats a token.

        Raises SetupError, one line, when it is not finite: these weights have nothing left to train.
        """
        loss = self._loss_of(self._refresh().to(self.device), windows)
        if not math.isfinite(loss):
            raise SetupError(f"the loss is {loss}: training has diverged; start a run with a lower --optimizer.lr")
        return loss

    def _loss_of(self, weights: FlatState, windows: np.ndarray) -> float:
        self._model.bind(weights)
        micro_batch = max(1, _EVAL_TOKENS // windows.shape[1])
        return mean_loss(self._model, windows, micro_batch=micro_batch, precision="fp32")

    def aggregate(self, form: Callable[[Tensor], T]) -> tuple[float, T]:
        """Let `form` write the round's aggregate, [d] fp32 on the CPU; returns its norm and what `form` returned.

        It is then clipped and kept for the step. Raises Refused(non_finite).
        """
        formed = form(self._aggregate.flat)
        norm = self.optimizer.clip(self._aggregate)
        if self._gradient is not self._aggregate:
            self._gradient.copy_(self._aggregate)
        return norm, formed

    def trial(self, lr: float, windows: np.ndarray) -> float:
        """What `loss` would be after `step(lr)`, finite or not; nothing is changed."""
        candidate = self._spare()
        self.optimizer.preview(self._gradient, lr, candidate)
        self.codec.round_(candidate.flat)
        return self._loss_of(candidate, windows)

    def _spare(self) -> FlatState:
        """Weights to try out; made by the first that asks."""
        if self._candidate is None:
            self._candidate = self.weights.empty_like()
        return self._candidate

    def rate(self, number: int, horizon: int) -> float:
        """Learning rate of round `number`."""
        return learning_rate(number - 1, self.config.optimizer, horizon)  # the schedule counts from 0

    def step(self, lr: float) -> None:
        """One optimizer step against the round's aggregate."""
        self.optimizer.step(self._gradient, lr)
        self._changed()
        if self._recent:
            self._recent.insert(0, self._recent.pop().copy_(self._aggregate))
            self._remembered = min(self._remembered + 1, len(self._recent))

    def scoring_gradient(self, windows: np.ndarray) -> Tensor:
        """Gradient of the broadcast weights' mean loss on windows [n, seq_len + 1]; [d] fp32 on the CPU.

        Valid until the next call, which overwrites it. Raises SetupError as `loss` does.
        """
        if self._scoring is None:
            self._scoring = FlatState(self._schema)
        self._model.bind(self._refresh().to(self.device))
        exact = Exact(max(1, _SCORING_TOKENS // windows.shape[1]), native_precision(self.device))
        exact(self._model, windows, out=self._scoring, stop=threading.Event())
        if not math.isfinite(self._scoring.norm()):
            raise SetupError(
                "the scoring gradient is no number: training has diverged; start with a lower --optimizer.lr"
            )
        return self._scoring.flat

    def baseline(self) -> list[tuple[BaselineVector, Tensor]]:
        """The vectors that any miner could send without work, before this round's step: [d] fp32 on the CPU each."""
        moment = self.optimizer.tensors().get("exp_avg")
        found = [(BaselineVector(kind="aggregate", age=i), kept.flat) for i, kept in enumerate(self._recent, 1)]
        found = found[: self._remembered]
        if moment is not None and self.optimizer.steps:
            found.append((BaselineVector(kind="moment"), moment.cpu()))
        return found

    def capture(self, state: Mapping[str, object]) -> Checkpoint:
        """A view of everything a continuation needs; write it before the next step."""
        steps = {"optimizer_steps": self.optimizer.steps, "aggregates": self._remembered}
        facts = {**state, "model": self.digest(), **steps}
        return Checkpoint(dict(self.weights.views), self._beside_weights(), facts)

    def _beside_weights(self) -> dict[str, Tensor]:
        """What a continuation needs and the weights do not hold: moments and recent aggregates, [d] each."""
        return {**self._moments(), **{_aggregate(i): kept.flat for i, kept in enumerate(self._recent, 1)}}

    def _moments(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.optimizer.tensors().items() if name != "step"}

    def restore(self, read: Callable[[Schema, Schema, Schema], Checkpoint]) -> None:
        """Take over a checkpoint. Raises CheckpointError.

        `read` gets the schemas of the model, of the optimizer, and of what may be there beside it.
        """
        moments = {name: tuple(tensor.shape) for name, tensor in self._moments().items()}
        aggregates = {_aggregate(i): tuple(self._aggregate.flat.shape) for i in range(1, RECENT + 1)}
        checkpoint = read(self._schema, moments, aggregates)
        for name, view in self.weights.views.items():
            view.copy_(checkpoint.model[name])
        steps = torch.tensor(int(str(checkpoint.state["optimizer_steps"])))
        self.optimizer.load({**{name: checkpoint.optimizer[name] for name in moments}, "step": steps})
        self._recall(checkpoint)
        self._changed()
        if self.digest() != checkpoint.state["model"]:
            raise CheckpointError("the checkpoint's weights are not those its state names")

    def _recall(self, checkpoint: Checkpoint) -> None:
        """Take over the aggregates that are there and asked for now; their number is the ranking's, not the run's."""
        there = int(str(checkpoint.state["aggregates"]))
        self._remembered = min(there, len(self._recent))
        for i, aggregate in enumerate(self._recent[: self._remembered], 1):
            aggregate.flat.copy_(checkpoint.optimizer[_aggregate(i)])

    def _changed(self) -> None:
        self._digest, self._stale = None, True


def _aggregate(age: int) -> str:
    """What a checkpoint calls the aggregate of the last step but `age` - 1."""
    return f"aggregate_{age}"


def _kept_aggregates(config: ValidatorConfig) -> int:
    """How many rounds' aggregates are remembered, for ranking."""
    return 0 if config.ranking.rule == "off" else RECENT
