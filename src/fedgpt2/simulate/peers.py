"""The miners of a simulation, behind the port through which a round talks to any.

Honest ones compute the real gradient over their own order's windows, at the weights in the state that is sent; hostile
ones answer as one, through `Attack`, when all honest ones have. No answer takes time here: none is late but those that
say so, and a quorum is met in an order drawn anew each round.

Letters: n rows, d parameters.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedgpt2.aggregation.combine import terms
from fedgpt2.aggregation.registry import pipeline
from fedgpt2.data.assignment import Assignment
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import Culprit, NetworkError, NoMinersError, PeerError, Reason, Refused
from fedgpt2.event_loop import off_loop
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.link.blobs import Blob
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Order
from fedgpt2.simulate.arrival import Body, Claims, receive
from fedgpt2.simulate.attacks.base import Attack, RoundView, Submission
from fedgpt2.simulate.honest_miners import Engine, HonestMiners
from fedgpt2.simulate.participants import Participants, number
from fedgpt2.types import Digest, Hotkey
from fedgpt2.validator.peers import ConnectedMiner, IssuedOrder, OrderResult, Traffic

__all__ = ["SimulatedMiners"]

_AT_A_LOSS = Refused(Reason.COMPUTE_FAILED, "there is no honest gradient to lie by")


@dataclass
class SimulatedMiners:
    """Implements `validator.peers.Peers` in one process."""

    roster: Participants
    crowd: HonestMiners
    engine: Engine
    corpus: Corpus
    rule: str  # `--aggregation.rule`
    header_limit: int
    seed: int
    liars: Attack | None  # None: the hostile ones are not there
    aggregate: Callable[[], Tensor | None]  # the last one formed
    outbox: Outbox
    _shares: dict[Hotkey, float] = field(default_factory=dict)
    _before: Tensor | None = None

    def __post_init__(self) -> None:
        index = {hotkey: i for i, hotkey in enumerate(self.roster.hotkeys)}
        self._index: Mapping[Hotkey, int] = index
        self._places = {i: place for place, i in enumerate(self.roster.honest)}

    def seats(self) -> list[ConnectedMiner]:
        """All who take part."""
        there = [i for i in range(len(self.roster.hotkeys)) if self.liars is not None or i not in self.roster.hostile]
        return [ConnectedMiner(self.roster.hotkeys[i], f"miner-{i}") for i in there]

    async def present(self, at_least: int) -> Sequence[ConnectedMiner]:
        """All who take part. Raises NoMinersError when `--round.min_miners` asks for more."""
        seats = self.seats()
        if len(seats) < at_least:
            raise NoMinersError(f"{len(seats)} miners take part, --round.min_miners is {at_least}")
        return seats

    async def gather(
        self, tickets: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], *, deadline: float, quorum: int
    ) -> Sequence[OrderResult]:
        """One outcome a ticket, in order. Cancelled, it stops computing within one block of the model."""
        halt = threading.Event()
        try:
            return await off_loop(self._play, tickets, blobs, quorum, halt)
        finally:
            halt.set()

    def deliver(self) -> None:
        """All arrive. Liars remember what weight they had when a step was last taken."""
        receipts = [receipt for hotkey in self.roster.hotkeys for receipt in self.outbox.waiting(hotkey)]
        for receipt in receipts:
            self.outbox.remove(receipt)
        weights = {Hotkey(receipt.receiver): receipt.weight for receipt in receipts}
        if any(weights.values()):
            self._shares = weights

    # --- a round ---

    def _play(
        self, tickets: Sequence[IssuedOrder], blobs: Mapping[Digest, Blob], quorum: int, halt: threading.Event
    ) -> list[OrderResult]:
        began, number_ = time.monotonic(), tickets[0].order.round
        weights = self.crowd.weights(blobs[Digest(tickets[0].order.state[0].digest)])
        outcomes: dict[Hotkey, OrderResult] = {}
        self.crowd.begin()
        for ticket in tickets:
            place = self._places.get(self._index[ticket.seat.hotkey])
            if place is not None:
                outcomes[ticket.seat.hotkey] = self._honest(place, ticket, weights, began, halt)
        hostile = [ticket for ticket in tickets if ticket.seat.hotkey not in outcomes]
        if halt.is_set():
            raise Refused(Reason.CANCELLED, "the round was called off")
        if hostile and self.liars is not None:
            scene = self._scene(hostile, len(tickets), weights, halt)
            loss = _mean([o.answer.contribution.claimed_loss for o in outcomes.values() if o.answer])
            replies = self.liars(scene) if self.crowd.answered else [_AT_A_LOSS] * len(hostile)
            for ticket, reply in zip(hostile, replies, strict=True):
                outcomes[ticket.seat.hotkey] = self._hostile(ticket, reply, loss, began)
        if self.liars is not None:
            self._before = weights.flat.clone() if self._before is None else self._before.copy_(weights.flat)
        rng = np.random.default_rng(number(self.seed, "arrivals", number_))
        return _arrived([outcomes[ticket.seat.hotkey] for ticket in tickets], quorum, rng)

    def _honest(
        self, place: int, ticket: IssuedOrder, weights: FlatState, began: float, halt: threading.Event
    ) -> OrderResult:
        order, started = ticket.order, time.monotonic()
        rng = self._rng("honest", place, order.round)
        try:
            sent = self.crowd.answer(place, order.round, order, weights, self._windows(order), rng, halt)
            if sent is None:
                raise NetworkError(Reason.UNREACHABLE, "not there this round")
        except PeerError as failure:
            return OrderResult(ticket, failure=failure, traffic=_traffic(ticket, None, began))
        body, loss = sent
        return self._judged(ticket, body, Claims(Digest(order.parent), loss, time.monotonic() - started), began)

    def _hostile(self, ticket: IssuedOrder, reply: Submission | PeerError, loss: float, began: float) -> OrderResult:
        if isinstance(reply, PeerError):
            return OrderResult(ticket, failure=reply, traffic=_traffic(ticket, None, began))
        body = Body(reply.codec, reply.header, reply.data.cast("B"))
        return self._judged(ticket, body, Claims(reply.parent, loss, 0.0), began)

    def _judged(self, ticket: IssuedOrder, body: Body, claims: Claims, began: float) -> OrderResult:
        """As `validator.exchange` ends: an answer, or why there is none."""
        try:
            answer = receive(ticket, body, claims, self.header_limit)
        except PeerError as failure:
            answered = failure.culprit is Culprit.MINER
            return OrderResult(ticket, failure=failure, answered=answered, traffic=_traffic(ticket, None, began))
        return OrderResult(ticket, answer, answered=True, traffic=_traffic(ticket, body, began))

    def _scene(
        self, hostile: Sequence[IssuedOrder], asked: int, weights: FlatState, halt: threading.Event
    ) -> RoundView:
        rule = terms(self.rule, asked, 0).rule
        stages = None if rule == "mean" else pipeline(rule)

        def defence(rows: Tensor, f: int) -> Tensor:
            if stages is None:
                return rows.mean(0)
            out = torch.empty(rows.shape[1])
            stages(list(rows), None, f, out)
            return out

        orders = tuple(ticket.order for ticket in hostile)
        return RoundView(
            round=orders[0].round,
            orders=orders,
            weights=weights.flat,
            before=self._before,
            aggregate=self.aggregate(),
            shares=tuple(self._shares.get(Hotkey(order.receiver), 0.0) for order in orders),
            honest=self.crowd.gradients,
            gradient=lambda at, on: self.engine.fresh(at, on, halt),
            windows=lambda i: self._windows(orders[i]),
            defence=defence,
            rng=self._rng("liars", orders[0].round),
            pipeline=stages,
        )

    def _windows(self, order: Order) -> Tokens:
        stated = order.assignment
        return self.corpus.windows(Assignment(Digest(stated.manifest), stated.slot, stated.pages, stated.windows))

    def _rng(self, *what: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(number(self.seed, *what))


def _traffic(ticket: IssuedOrder, body: Body | None, began: float) -> Traffic:
    """Bodies only: the bytes of state and gradient that a network would have carried."""
    now = time.monotonic() - began
    down, up = sum(ref.length for ref in ticket.order.state), body.length if body else 0
    return Traffic(bytes_down=down, bytes_up=up, described=now, received=now if body else 0.0)


def _arrived(outcomes: list[OrderResult], quorum: int, rng: np.random.Generator) -> list[OrderResult]:
    """The outcomes of a round that ends when enough miners have answered, the others being too slow for it."""
    answers = 0
    for place in rng.permutation(len(outcomes)):
        if answers >= quorum:
            missing = Refused(Reason.CANCELLED, "others were enough")
            outcomes[place] = replace(outcomes[place], answer=None, failure=missing, answered=False)
        answers += outcomes[place].answer is not None
    return outcomes


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else 0.0
