"""The miners of a simulation, each behind a memory link.

Honest ones compute the real gradient over their own order's windows, at the weights in the state that is sent, one
after the other; hostile ones answer together, through `Attack`, when all honest ones have computed. Bodies are then
sent one after the other, in an order drawn anew each round: what a quorum below 1 leaves out depends on the seed alone.

Letters: n rows, d parameters.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec
import numpy as np
import torch
from torch import Tensor

from fedgpt2.aggregation.combine import terms
from fedgpt2.aggregation.registry import pipeline
from fedgpt2.data.assignment import Assignment
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import NetworkError, PeerError, Reason, Refused
from fedgpt2.event_loop import off_loop
from fedgpt2.link.base import ConnectedMiner
from fedgpt2.link.blobs import Blob
from fedgpt2.link.memory import Answer, MemoryLink, unsigned
from fedgpt2.miner.packer import ComputeResult, describe
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.digests import work_id
from fedgpt2.protocol.messages import BlobRef, Contribution, Envelope, Order, Receipt, decode
from fedgpt2.simulate.attacks.base import Attack, RoundView, Submission
from fedgpt2.simulate.exchange import RoundWork, Work
from fedgpt2.simulate.honest_miners import Engine, HonestMiners
from fedgpt2.simulate.participants import Participants, number
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Digest

__all__ = ["SimulatedMiners"]

_AXON = "miner-"  # and the index
_NO_GRADIENT = Refused(Reason.COMPUTE_FAILED, "no honest miner has computed a gradient to attack with")


class SimulatedMiners:
    """All miners of a run; without an `attack` the hostile ones are not there."""

    def __init__(
        self,
        participants: Participants,
        honest: HonestMiners,
        engine: Engine,
        corpus: Corpus,
        *,
        rule: str,
        header_limit: int,
        seed: int,
        attack: Attack | None,
        aggregate: Callable[[], Tensor | None],
    ) -> None:
        """`rule`: `--aggregation.rule`; `aggregate` returns the last aggregate formed, for attacks to see."""
        self._participants = participants
        self.honest = honest
        self._engine = engine
        self._corpus = corpus
        self._rule = rule
        self._seed = seed
        self._attack = attack
        self._aggregate = aggregate
        self._places = {i: place for place, i in enumerate(participants.honest)}
        self._buffers = MemoryPool()
        self._round: RoundWork | None = None
        self._task: asyncio.Task[None] | None = None
        self._receipts: list[Receipt] = []  # since the last round
        self._shares: Mapping[str, float] = {}  # each miner's weight when a step was last taken
        self._before: Tensor | None = None  # the weights of the round before
        self.links = [self._link(i, header_limit) for i in self._present()]

    def lease(self, axon: str, size: int) -> memoryview:
        """The receive buffer of an axon: an honest miner's body is received into the memory that it is sent from."""
        place = self._places.get(int(axon.removeprefix(_AXON)))
        own = None if place is None else self.honest.body(place)
        return own if own is not None and own.nbytes == size else self._buffers.lease(axon, size)

    def _present(self) -> list[int]:
        everybody = range(len(self._participants.hotkeys))
        return [i for i in everybody if self._attack is not None or i not in self._participants.hostile]

    def _link(self, index: int, header_limit: int) -> MemoryLink:
        miner = ConnectedMiner(self._participants.hotkeys[index], f"{_AXON}{index}")
        return MemoryLink(_Miner(index, self), miner, header_limit, verify=unsigned)

    # --- what the miners are told ---

    def work(self, index: int, order: bytes, blobs: Mapping[Digest, Blob]) -> Work:
        """Take an order for one miner. All orders of a round are offered in one turn of the event loop."""
        if self._round is None:
            self._round = RoundWork(blobs)
            self._task = asyncio.create_task(self._work(self._round))  # it begins when all orders are there
            self._task.add_done_callback(self._round.finished)
        payload = decode(order, Envelope).payload
        return self._round.add(index, decode(payload, Order), work_id(payload))

    def take_receipt(self, receipt: bytes) -> None:
        """Hostile miners see the weights they had."""
        self._receipts.append(decode(decode(receipt, Envelope).payload, Receipt))

    # --- a round ---

    async def _work(self, round_: RoundWork) -> None:
        """Compute all answers, then send the bodies in an order drawn anew."""
        self._round = None
        self._note_shares()
        first = round_.works[0].order
        weights = await off_loop(self.honest.weights, round_.blobs[Digest(first.state[0].digest)])
        self.honest.begin()
        for work in round_.works:
            if work.index in self._places and not round_.halt.is_set():
                await self._compute(work, weights, round_.halt)
        if self._attack is not None and not round_.halt.is_set():
            await self._compute_hostile(round_, weights)
        rng = np.random.default_rng(number(self._seed, "arrivals", first.round))
        for place in rng.permutation(len(round_.works)):
            await round_.works[place].take_turn()

    def _note_shares(self) -> None:
        weights = {receipt.receiver: receipt.weight for receipt in self._receipts}
        if any(weights.values()):
            self._shares = weights
        self._receipts.clear()

    async def _compute(self, work: Work, weights: FlatState, halt: threading.Event) -> None:
        try:
            work.computed(*await off_loop(self._gradient, work, weights, halt))
        except PeerError as failure:
            work.failed(failure)

    def _gradient(self, work: Work, weights: FlatState, halt: threading.Event) -> tuple[Contribution, Blob]:
        """An honest miner's contribution."""
        place, order, started = self._places[work.index], work.order, time.monotonic()
        rng = self._rng("honest", place, order.round)
        sent = self.honest.answer(place, order.round, order, weights, self._windows(order), rng, halt)
        if sent is None:
            raise NetworkError(Reason.UNREACHABLE, "not there this round")
        body, loss = sent
        return self._contribution(work, loss, time.monotonic() - started, body.ref), body

    async def _compute_hostile(self, round_: RoundWork, weights: FlatState) -> None:
        hostile = [work for work in round_.works if work.index not in self._places]
        losses = [work.claimed_loss for work in round_.works if work.claimed_loss is not None]
        view = self._view(hostile, len(round_.works), weights, round_.halt) if hostile else None
        submissions = await off_loop(self._submissions, view, weights)
        for work, sent in zip(hostile, submissions, strict=True):
            if isinstance(sent, PeerError):
                work.failed(sent)
                continue
            parent, body = sent
            stated = self._contribution(work, sum(losses) / max(1, len(losses)), 0.0, body.ref)
            work.computed(msgspec.structs.replace(stated, parent=parent), body)

    def _submissions(self, view: RoundView | None, weights: FlatState) -> Sequence[tuple[Digest, Blob] | PeerError]:
        """What the hostile miners send: a parent and a body each; they also remember the weights."""
        sent: Sequence[Submission | PeerError] = []
        if view is not None and self._attack is not None:
            sent = self._attack(view) if self.honest.answered else [_NO_GRADIENT] * len(view.orders)
        self._before = weights.flat.clone() if self._before is None else self._before.copy_(weights.flat)
        return [each if isinstance(each, PeerError) else (each.parent, _body(each)) for each in sent]

    def _contribution(self, work: Work, loss: float, seconds: float, blob: BlobRef) -> Contribution:
        tokens = work.order.n_windows * self._corpus.manifest.seq_len
        return describe(work.order, work.work_id, ComputeResult(loss, tokens, seconds), blob)

    def _view(self, hostile: Sequence[Work], asked: int, weights: FlatState, halt: threading.Event) -> RoundView:
        """The round as hostile miners see it."""
        rule = terms(self._rule, asked, 0).rule
        stages = None if rule == "mean" else pipeline(rule)

        def defence(rows: Tensor, f: int) -> Tensor:
            if stages is None:
                return rows.mean(0)
            out = torch.empty(rows.shape[1])
            stages(list(rows), None, f, out)
            return out

        orders = tuple(work.order for work in hostile)
        return RoundView(
            round=orders[0].round,
            orders=orders,
            weights=weights.flat,
            before=self._before,
            aggregate=self._aggregate(),
            shares=tuple(self._shares.get(order.receiver, 0.0) for order in orders),
            honest=self.honest.gradients,
            gradient=lambda at, on: self._engine.fresh(at, on, halt),
            windows=lambda i: self._windows(orders[i]),
            defence=defence,
            rng=self._rng("liars", orders[0].round),
            pipeline=stages,
        )

    def _windows(self, order: Order) -> Tokens:
        stated = order.assignment
        return self._corpus.windows(Assignment(Digest(stated.manifest), stated.slot, stated.pages, stated.windows))

    def _rng(self, *what: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(number(self._seed, *what))


class _Miner:
    """One of them, as its link sees it."""

    def __init__(self, index: int, together: SimulatedMiners) -> None:
        self._index = index
        self._together = together

    def work(self, order: bytes, blobs: Mapping[Digest, Blob]) -> AbstractAsyncContextManager[Answer]:
        """As `MemoryMiner` says."""
        return self._together.work(self._index, order, blobs).answer()

    def take_receipt(self, receipt: bytes) -> None:
        """As `MemoryMiner` says."""
        self._together.take_receipt(receipt)


def _body(submission: Submission) -> Blob:
    return Blob.of(submission.codec, submission.header, submission.data)
