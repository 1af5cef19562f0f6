"""Who is present and when a round stops waiting, with axons that do as they are told instead of sockets."""

import asyncio
import time

import msgspec
import numpy as np
import pytest

from fedgpt2.config import Axons, Limits
from fedgpt2.errors import Culprit, DiskFullError, NetworkError, NoMinersError, Reason, Refused
from fedgpt2.identity.pins import KeyBook
from fedgpt2.ledger.outbox import MAX_WAITING, Outbox
from fedgpt2.link.address import parse
from fedgpt2.protocol.messages import Info, Receipt, decode
from fedgpt2.validator import http_peers
from fedgpt2.validator.http_peers import DialledMiners
from fedgpt2.validator.peers import OrderResult

from .conftest import MINERS, SIGNER, answer, order_book

REFUSED = NetworkError(Reason.UNREACHABLE, "connection refused")


class ToldClient:
    """An axon: whom it shows (a hotkey, or an error to raise), and what was asked of it."""

    def __init__(self, shows):
        self.shows = shows
        self.introductions, self.cancelled, self.receipts = 0, [], []
        self.refuses_receipts = None

    async def introduce(self):
        self.introductions += 1
        if isinstance(self.shows, Exception):
            raise self.shows
        if self.shows is None:
            await asyncio.sleep(60)
        words = ("fp32",)
        return Info(
            hotkey=self.shows,
            versions=(1,),
            package="x",
            state_codecs=words,
            gradient_codecs=words,
            strategies=("mean_gradient",),
            message_bytes=1 << 20,
            challenge="0" * 64,
        )

    async def cancel(self, work_id):
        self.cancelled.append(work_id)

    async def deliver_receipt(self, receipt):
        if self.refuses_receipts:
            raise self.refuses_receipts
        self.receipts.append(receipt)


class Miners:
    """HttpPeers over told axons: what was noticed and recorded."""

    def __init__(self, shown, monkeypatch, *, recorded=(), record=None, outbox=None, check_miner=None, **axons):
        self.clients = [ToldClient(shows) for shows in shown]
        made = iter(self.clients)
        monkeypatch.setattr(http_peers, "AxonClient", lambda *_: next(made))
        monkeypatch.setattr(http_peers, "_PROBE_SECONDS", 0.01)
        self.notices, self.records = [], {}
        self.peers = DialledMiners(
            None,
            SIGNER,
            Axons(**{"wait_seconds": 0.3, **axons}),
            [parse(str(9000 + number)) for number in range(len(shown))],
            Limits(),
            KeyBook(dict(recorded)),
            outbox=outbox or Outbox(),
            record=record or self.records.__setitem__,
            notice=self.notices.append,
            **({"check_miner": check_miner} if check_miner else {}),
        )

    async def __aenter__(self):
        self.peers.start()
        return self

    async def __aexit__(self, *_):
        await self.peers.close()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    async def hotkeys(self, at_least=1):
        return [seat.hotkey for seat in await self.peers.present(at_least)]


async def test_a_miner_that_does_not_suit_is_noticed_once_and_keeps_nobody_from_its_key(monkeypatch):
    unfit = [MINERS[1]]

    def check_miner(info, seated):
        return "it knows no fp32" if info.hotkey in unfit else None

    async with Miners([MINERS[0], MINERS[1], MINERS[1]], monkeypatch, check_miner=check_miner) as told:
        assert await told.hotkeys() == [MINERS[0]]
        await asyncio.sleep(0.05)
        lines = [f"127.0.0.1:900{place}: it knows no fp32; going on without it" for place in (1, 2)]
        assert sorted(told.notices) == lines
        unfit.clear()
        assert await told.hotkeys(2) == [MINERS[0], MINERS[1]]


async def test_who_is_there_already_counts_when_the_last_slot_is_asked_for(monkeypatch):
    def check_miner(info, seated):
        return "no slot is left" if seated else None

    async with Miners(MINERS[:2], monkeypatch, check_miner=check_miner) as told:
        assert await told.hotkeys() == [MINERS[0]]
        assert told.notices == ["127.0.0.1:9001: no slot is left; going on without it"]
        told.clients[0].shows = REFUSED
        told.peers._lost("127.0.0.1:9000", "gone")
        await asyncio.sleep(0.05)
        assert await told.hotkeys() == [MINERS[1]]


async def test_those_who_answer_are_present_and_the_others_noticed_once(monkeypatch):
    async with Miners([MINERS[0], REFUSED, MINERS[1]], monkeypatch) as told:
        assert await told.hotkeys() == [MINERS[0], MINERS[1]]
        await asyncio.sleep(0.1)
        assert await told.hotkeys() == [MINERS[0], MINERS[1]]
        assert told.clients[1].introductions > 3
        assert told.notices == ["127.0.0.1:9001: unreachable: connection refused; going on without it"]
        assert told.records == {"127.0.0.1:9000": MINERS[0], "127.0.0.1:9002": MINERS[1]}


async def test_who_comes_later_is_present_from_then_on(monkeypatch):
    async with Miners([MINERS[0], REFUSED], monkeypatch) as told:
        assert await told.hotkeys() == [MINERS[0]]
        told.clients[1].shows = MINERS[1]
        assert await told.hotkeys(at_least=2) == [MINERS[0], MINERS[1]]


async def test_nobody_in_time_is_one_line_that_says_why(monkeypatch):
    async with Miners([REFUSED, Refused(Reason.FORWARDED, "a proxy")], monkeypatch) as told:
        with pytest.raises(NoMinersError) as caught:
            await told.hotkeys()
    assert str(caught.value) == (
        "no miner answered within 0.3 s (127.0.0.1:9000: unreachable: connection refused; "
        "127.0.0.1:9001: forwarded: a proxy); start miners first"
    )


async def test_too_few_in_time(monkeypatch):
    async with Miners([MINERS[0], None], monkeypatch) as told:
        with pytest.raises(NoMinersError, match=r"1 of 2 miners answered within 0\.3 s"):
            await told.hotkeys(at_least=2)
        assert await told.hotkeys() == [MINERS[0]]  # one that never answers holds nobody up for longer than that


async def test_one_hotkey_at_two_axons_is_one_miner(monkeypatch):
    async with Miners([MINERS[0], MINERS[0]], monkeypatch) as told:
        assert await told.hotkeys() == [MINERS[0]]
        assert told.notices == [
            f"127.0.0.1:9001: duplicate_hotkey: {MINERS[0]} is already at 127.0.0.1:9000; going on without it"
        ]


@pytest.mark.parametrize("accept_new", [False, True])
async def test_another_key_than_the_recorded_one(monkeypatch, accept_new):
    recorded = {"127.0.0.1:9000": MINERS[0]}
    async with Miners([MINERS[1], MINERS[2]], monkeypatch, recorded=recorded, accept_new=accept_new) as told:
        assert await told.hotkeys() == [MINERS[1]] * accept_new + [MINERS[2]]
        assert [("key_changed" in notice) for notice in told.notices] == [True] * (not accept_new)
        assert told.records.get("127.0.0.1:9000") == (MINERS[1] if accept_new else None)


async def test_what_ends_a_task_in_the_background_ends_the_run(monkeypatch):
    def full(*_):
        raise DiskFullError("no space left")

    async with Miners([MINERS[0]], monkeypatch, record=full) as told:
        with pytest.raises(DiskFullError):
            await told.hotkeys()


# --- a round ---


@pytest.fixture
def tickets(corpus, config):
    """A ticket for each seat."""
    state = order_book(corpus, config).manifest.ref

    def write(seats):
        book = order_book(corpus, config)
        return book.write(1, 0, "2" * 64, state, [(seat, slot) for slot, seat in enumerate(seats)])

    return write


def exchanges(monkeypatch, behaviours):
    """Replace the exchange with a miner by (seconds, outcome of a ticket)."""

    class ToldExchange:
        def __init__(self, client, ticket, blobs, limits, traffic, lease):
            self.ticket, self.traffic = ticket, traffic

        async def run(self):
            seconds, outcome = behaviours[self.ticket.seat.hotkey]
            self.traffic.sent = 0.0 if outcome is unsent else 0.01
            await asyncio.sleep(seconds)
            return outcome(self.ticket)

    monkeypatch.setattr(http_peers, "Exchange", ToldExchange)


def unsent(ticket):
    """Of a miner that never comes to hold the state: nothing."""
    raise AssertionError


def fails(failure, answered=False):
    return lambda ticket: OrderResult(ticket, failure=failure, answered=answered)


async def gather(told, tickets, deadline=5.0, quorum=None):
    began = time.monotonic()
    written = tickets(await told.peers.present(1))
    outcomes = await told.peers.gather(
        written, {}, deadline=deadline, quorum=len(written) if quorum is None else quorum
    )
    assert [outcome.ticket for outcome in outcomes] == written
    return outcomes, time.monotonic() - began


async def test_all_answers_end_a_round_before_its_deadline(monkeypatch, tickets):
    exchanges(monkeypatch, {MINERS[0]: (0.05, answer), MINERS[1]: (0.0, fails(Refused(Reason.BUSY)))})
    async with Miners(MINERS[:2], monkeypatch) as told:
        outcomes, seconds = await gather(told, tickets)
        assert outcomes[0].answer is not None
        assert outcomes[1].failure.reason is Reason.BUSY
        assert seconds < 2


async def test_miners_of_whom_none_has_time_are_asked_again(monkeypatch, tickets):
    monkeypatch.setattr(http_peers, "_BUSY_SECONDS", 0.05)
    asked = []

    def busy_at_first(ticket):
        asked.append(ticket.seat.hotkey)
        return fails(Refused(Reason.BUSY))(ticket) if len(asked) <= 4 else answer(ticket)

    exchanges(monkeypatch, dict.fromkeys(MINERS[:2], (0.0, busy_at_first)))
    async with Miners(MINERS[:2], monkeypatch) as told:
        outcomes, _ = await gather(told, tickets)
        assert [outcome.answer is not None for outcome in outcomes] == [True, True]
        assert sorted(asked) == sorted(MINERS[:2] * 3)
        assert told.notices == ["no miner has time (busy); asking again until the deadline"]


async def test_a_miner_that_has_time_late_has_all_of_it(monkeypatch, tickets):
    monkeypatch.setattr(http_peers, "_BUSY_SECONDS", 0.2)
    asked = []

    def busy_at_first(ticket):
        asked.append(ticket)
        return fails(Refused(Reason.BUSY))(ticket) if len(asked) == 1 else answer(ticket)

    behaviours = {MINERS[0]: (0.3, busy_at_first)}
    exchanges(monkeypatch, behaviours)
    async with Miners(MINERS[:1], monkeypatch) as told:
        outcomes, seconds = await gather(told, tickets, deadline=0.6)  # less than 0.1 of it is left at the second try
        assert outcomes[0].answer is not None
        assert seconds > 0.6


async def test_the_busy_are_not_waited_for_where_somebody_else_is_present(monkeypatch, tickets):
    exchanges(monkeypatch, dict.fromkeys(MINERS[:2], (0.0, fails(Refused(Reason.BUSY)))))
    async with Miners(MINERS[:2], monkeypatch) as told:
        began = time.monotonic()
        seats = await told.peers.present(2)
        outcomes = await told.peers.gather(tickets(seats[:1]), {}, deadline=5.0, quorum=1)
        assert [outcome.failure.reason for outcome in outcomes] == [Reason.BUSY]
        assert time.monotonic() - began < 1.5


async def test_miners_that_never_have_time_are_asked_until_the_deadline(monkeypatch, tickets):
    monkeypatch.setattr(http_peers, "_BUSY_SECONDS", 0.05)
    exchanges(monkeypatch, dict.fromkeys(MINERS[:2], (0.0, fails(Refused(Reason.BUSY)))))
    async with Miners(MINERS[:2], monkeypatch) as told:
        outcomes, seconds = await gather(told, tickets, deadline=0.3)
        assert [outcome.failure.reason for outcome in outcomes] == [Reason.BUSY] * 2
        assert 0.2 <= seconds < 1


async def test_the_deadline_makes_the_rest_late_and_calls_their_work_off(monkeypatch, tickets):
    exchanges(monkeypatch, {MINERS[0]: (0.0, answer), MINERS[1]: (60, answer)})
    async with Miners(MINERS[:2], monkeypatch) as told:
        outcomes, seconds = await gather(told, tickets, deadline=0.2)
        assert outcomes[0].answer is not None
        assert (outcomes[1].failure.reason, outcomes[1].failure.culprit) == (Reason.LATE, Culprit.MINER)
        assert 0.2 <= seconds < 2
        await asyncio.sleep(0.01)
        assert told.clients[1].cancelled == [outcomes[1].ticket.work_id]
        assert await told.hotkeys() == MINERS[:2]  # late is not gone


async def test_a_state_that_never_arrived_is_the_fault_of_the_link(monkeypatch, tickets):
    exchanges(monkeypatch, {MINERS[0]: (60, answer), MINERS[1]: (60, unsent)})
    async with Miners(MINERS[:2], monkeypatch) as told:
        outcomes, _ = await gather(told, tickets, deadline=0.2)
        assert [outcome.failure.reason for outcome in outcomes] == [Reason.LATE, Reason.TIMED_OUT]
        assert outcomes[1].failure.culprit is Culprit.NETWORK
        await asyncio.sleep(0.01)
        assert told.clients[1].cancelled == [outcomes[1].ticket.work_id]


async def test_a_quorum_of_answers_ends_the_wait(monkeypatch, tickets):
    behaviours = {MINERS[0]: (0.0, answer), MINERS[1]: (0.05, answer), MINERS[2]: (60, answer)}
    exchanges(monkeypatch, behaviours)
    async with Miners(MINERS[:3], monkeypatch) as told:
        outcomes, seconds = await gather(told, tickets, quorum=2)
        assert [outcome.answer is not None for outcome in outcomes] == [True, True, False]
        assert (outcomes[2].failure.reason, outcomes[2].failure.culprit) == (Reason.CANCELLED, Culprit.VALIDATOR)
        assert seconds < 2


async def test_failures_are_no_part_of_a_quorum(monkeypatch, tickets):
    behaviours = {
        MINERS[0]: (0.0, fails(Refused(Reason.BUSY))),
        MINERS[1]: (0.0, fails(REFUSED)),
        MINERS[2]: (0.1, answer),
    }
    exchanges(monkeypatch, behaviours)
    async with Miners(MINERS[:3], monkeypatch) as told:
        outcomes, _ = await gather(told, tickets, quorum=1)
        assert [outcome.answer is not None for outcome in outcomes] == [False, False, True]


def addresses(leased):
    return [np.frombuffer(view, np.uint8).ctypes.data for view in leased]


async def test_an_axon_has_one_buffer_whoever_answers_there(monkeypatch, tickets):
    leased = []

    class Leasing:
        def __init__(self, client, ticket, blobs, limits, traffic, lease):
            self.ticket, self.lease = ticket, lease

        async def run(self):
            leased.append(self.lease(1 << 20))
            return OrderResult(self.ticket, failure=REFUSED)  # who is gone: somebody else may come

    monkeypatch.setattr(http_peers, "Exchange", Leasing)
    async with Miners(MINERS[:2], monkeypatch, accept_new=True) as told:
        for first, second in (MINERS[:2], MINERS[2:4], (MINERS[1], MINERS[4])):
            told.clients[0].shows, told.clients[1].shows = first, second
            assert await told.hotkeys(at_least=2) == [first, second]
            await gather(told, tickets)
    places = addresses(leased)
    assert places == places[:2] * 3
    assert abs(places[0] - places[1]) >= 1 << 20  # answers of one round never share one


ABSENT = [
    (REFUSED, False, True),
    (Refused(Reason.WRONG_RECEIVER, "request is for another"), False, True),
    (Refused(Reason.WRONG_RECEIVER, "its answer names another", Culprit.MINER), True, False),
    (Refused(Reason.BUSY), False, False),
    (NetworkError(Reason.CUT_OFF), False, False),
]


@pytest.mark.parametrize(("failure", "answered", "lost"), ABSENT)
async def test_who_is_gone_or_somebody_else_is_introduced_again(monkeypatch, tickets, failure, answered, lost):
    exchanges(monkeypatch, {MINERS[0]: (0.0, fails(failure, answered)), MINERS[1]: (0.0, answer)})
    async with Miners(MINERS[:2], monkeypatch) as told:
        written = tickets(await told.peers.present(2))
        told.clients[0].shows = MINERS[2]  # by now somebody else
        before = told.clients[0].introductions
        await told.peers.gather(written, {}, deadline=1.0, quorum=len(written))
        await asyncio.sleep(0.05)
        assert (told.clients[0].introductions > before) == lost
        assert await told.hotkeys() == ([] if lost else [MINERS[0]]) + [MINERS[1]]
        assert any("key_changed" in notice for notice in told.notices) == lost


async def test_a_stop_takes_every_exchange_with_it(monkeypatch, tickets):
    exchanges(monkeypatch, dict.fromkeys(MINERS[:2], (60, answer)))
    async with Miners(MINERS[:2], monkeypatch) as told:
        task = asyncio.create_task(gather(told, tickets))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- receipts ---


def receipt(hotkey, number=1):
    return Receipt(
        run_id="1" * 64,
        round=number,
        sender=SIGNER.hotkey,
        receiver=hotkey,
        work_id=f"{number}{MINERS.index(hotkey)}".rjust(64, "0"),
        status="admitted",
        applied=True,
        model="3" * 64,
        ledger_head="4" * 64,
    )


def got(client):
    """Receipts an axon was given."""
    assert {envelope.kind for envelope in client.receipts} <= {"receipt"}
    return [decode(envelope.payload, Receipt) for envelope in client.receipts]


async def test_receipts_go_to_those_present_and_wait_for_the_others(monkeypatch):
    outbox = Outbox(receipt(hotkey) for hotkey in MINERS[:3])
    async with Miners([MINERS[0], MINERS[1], REFUSED], monkeypatch, outbox=outbox) as told:
        told.clients[1].refuses_receipts = NetworkError(Reason.CUT_OFF, "gone")
        await told.peers.present(2)
        await asyncio.sleep(0.05)  # without a round: what an earlier validator left
        assert [got(client) for client in told.clients] == [[receipt(MINERS[0])], [], []]
        assert "127.0.0.1:9001: receipt of round 1 not delivered (cut_off: gone); it is kept" in told.notices
        assert [outbox.waiting(hotkey) for hotkey in MINERS[:3]] == [[], [receipt(MINERS[1])], [receipt(MINERS[2])]]

        told.clients[1].refuses_receipts, told.clients[2].shows = None, MINERS[2]
        outbox.add(receipt(hotkey, 2) for hotkey in MINERS[:3])
        told.peers.deliver()
        await told.peers.present(3)
        await asyncio.sleep(0.05)
        for client, hotkey in zip(told.clients, MINERS, strict=False):
            assert got(client) == [receipt(hotkey), receipt(hotkey, 2)]
        assert not outbox


@pytest.mark.parametrize(
    ("reason", "culprit", "kept"),
    [
        (Reason.BAD_MESSAGE, Culprit.VALIDATOR, False),
        (Reason.UNSUPPORTED_VERSION, Culprit.VALIDATOR, False),
        (Reason.TOO_LARGE, Culprit.VALIDATOR, False),
        (Reason.BAD_MESSAGE, Culprit.MINER, True),  # a word for a reason that we do not know
        (Reason.WRONG_RECEIVER, Culprit.VALIDATOR, True),
        (Reason.UNKNOWN_CALLER, Culprit.VALIDATOR, True),
        (Reason.STALE_REQUEST, Culprit.VALIDATOR, True),
        (Reason.FORWARDED, Culprit.NETWORK, True),
        (Reason.BAD_SIGNATURE, Culprit.VALIDATOR, True),
        (Reason.TIMED_OUT, Culprit.NETWORK, True),
    ],
)
async def test_only_a_receipt_that_a_miner_cannot_read_is_given_up(monkeypatch, reason, culprit, kept):
    outbox = Outbox([receipt(MINERS[0]), receipt(MINERS[0], 2)])
    async with Miners([MINERS[0]], monkeypatch, outbox=outbox) as told:
        told.clients[0].refuses_receipts = Refused(reason, "no", culprit)
        assert await told.hotkeys() == [MINERS[0]]
        await asyncio.sleep(0.02)
        assert [each.round for each in outbox.waiting(MINERS[0])] == ([1, 2] if kept else [2])
        (line,) = told.notices  # one a round, however often it is found again
        assert ("; it is kept" in line) is kept
        told.peers._lost("127.0.0.1:9000", "gone")
        await asyncio.sleep(0.05)
        assert await told.hotkeys() == [MINERS[0]]
        assert sum("receipt of round" in line for line in told.notices) == 1
        told.peers.deliver()
        await asyncio.sleep(0.02)
        assert [each.round for each in outbox.waiting(MINERS[0])] == ([1, 2] if kept else [])


async def test_a_miner_too_slow_for_a_receipt_is_named(monkeypatch):
    monkeypatch.setattr(http_peers, "_RECEIPT_SECONDS", 0.01)
    async with Miners([MINERS[0]], monkeypatch, outbox=Outbox([receipt(MINERS[0])])) as told:
        told.clients[0].deliver_receipt = lambda _: asyncio.sleep(1)
        await told.peers.present(1)
        await asyncio.sleep(0.05)
        assert told.notices == ["127.0.0.1:9000: receipt of round 1 not delivered (timed out); it is kept"]


async def test_receipts_of_a_miner_that_is_gone_are_not_for_who_came_instead(monkeypatch):
    outbox = Outbox([receipt(MINERS[0]), receipt(MINERS[0], 2)])
    async with Miners([MINERS[0]], monkeypatch, outbox=outbox) as told:
        take = told.clients[0].deliver_receipt

        async def and_go(envelope):
            await take(envelope)
            told.peers._lost("127.0.0.1:9000", "gone")
            told.clients[0].shows = MINERS[1]

        told.clients[0].deliver_receipt = and_go
        await told.peers.present(1)
        await asyncio.sleep(0.05)
        assert [each.round for each in outbox.waiting(MINERS[0])] == [2]


async def test_receipts_of_another_validators_key_are_left_alone(monkeypatch):
    other = msgspec.structs.replace(receipt(MINERS[0]), sender=MINERS[3])
    outbox = Outbox([other])
    async with Miners([MINERS[0]], monkeypatch, outbox=outbox) as told:
        await told.peers.present(1)
        await asyncio.sleep(0.02)
        assert told.clients[0].receipts == []
    assert outbox.waiting(MINERS[0]) == [other]


async def test_a_miner_that_takes_no_receipts_is_named_when_its_oldest_go(monkeypatch):
    outbox = Outbox(receipt(MINERS[0], number) for number in range(1, MAX_WAITING + 1))
    async with Miners([REFUSED], monkeypatch, outbox=outbox) as told:
        told.peers.deliver()
        assert told.notices == []
        for number in (MAX_WAITING + 1, MAX_WAITING + 2):
            outbox.add([receipt(MINERS[0], number)])
            told.peers.deliver()
        assert told.notices == [f"{MINERS[0]}: 100 receipts wait for it; from now on it loses the oldest"]
        assert [each.round for each in outbox.waiting(MINERS[0])] == list(range(3, MAX_WAITING + 3))


async def test_a_slow_miners_receipts_are_on_their_way_once(monkeypatch):
    outbox = Outbox([receipt(MINERS[0])])
    async with Miners([MINERS[0]], monkeypatch, outbox=outbox) as told:
        let = asyncio.Event()
        take = told.clients[0].deliver_receipt

        async def slowly(envelope):
            await let.wait()
            await take(envelope)

        told.clients[0].deliver_receipt = slowly
        await told.peers.present(1)
        await asyncio.sleep(0.02)
        outbox.add([receipt(MINERS[0], 2)])
        told.peers.deliver()
        let.set()
        await asyncio.sleep(0.05)
        assert [each.round for each in got(told.clients[0])] == [1, 2]


async def test_a_run_that_is_over_waits_a_moment_for_receipts(monkeypatch):
    outbox = Outbox([receipt(MINERS[0]), receipt(MINERS[1])])
    began = time.monotonic()
    async with Miners([MINERS[0], REFUSED], monkeypatch, outbox=outbox) as told:
        pass  # nothing left to do: the run was finished before
    assert [each.round for each in got(told.clients[0])] == [1]
    assert outbox.waiting(MINERS[1]) == [receipt(MINERS[1])]
    assert time.monotonic() - began < 0.9
