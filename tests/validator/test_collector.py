"""When a round stops waiting, and how receipts are delivered; with links that do as they are told."""

import asyncio
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from fedgpt2.errors import Culprit, NetworkError, Reason, Refused, SetupError
from fedgpt2.ledger.outbox import MAX_WAITING, Outbox
from fedgpt2.link.base import ConnectedMiner, OrderResult
from fedgpt2.protocol.messages import Receipt, decode
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.validator import collector as module
from fedgpt2.validator.collector import Collector

from .conftest import MINERS, SIGNER, answer, order_book, receipt_for

REFUSED = NetworkError(Reason.UNREACHABLE, "connection refused")


def unsent(issued):
    """The result of a miner that never has the state: none."""
    raise AssertionError


def fails(failure, answered=False):
    return lambda issued: OrderResult(issued, failure=failure, answered=answered)


@dataclass
class TimedLink:
    """A link whose miner answers after `seconds` with what `behaviour` makes of the order."""

    miner: ConnectedMiner
    behaviour: object = answer
    seconds: float = 0.0
    offers: list = field(default_factory=list)
    cancelled: list = field(default_factory=list)
    receipts: list = field(default_factory=list)
    leased: list = field(default_factory=list)
    failure: Exception | None = None  # raised for a receipt
    before_receipt: object = None  # awaited first

    async def offer(self, issued, blobs, traffic, lease):
        self.offers.append(issued)
        self.leased.append(lease(1 << 20))
        traffic.sent = 0.0 if self.behaviour is unsent else 0.01
        await asyncio.sleep(self.seconds)
        result = self.behaviour(issued)
        traffic.answered = result.answered
        if result.failure is not None:
            raise result.failure
        return result.received

    async def cancel(self, work_id):
        self.cancelled.append(work_id)

    async def deliver(self, receipt):
        if self.before_receipt is not None:
            await self.before_receipt()
        if self.failure is not None:
            raise self.failure
        assert receipt.kind == "receipt"
        self.receipts.append(decode(receipt.payload, Receipt))


def link(number, behaviour=answer, seconds=0.0):
    return TimedLink(ConnectedMiner(MINERS[number], f"127.0.0.1:{9000 + number}"), behaviour, seconds)


class Miners:
    """A collector connected to these links, and what it noticed."""

    def __init__(self, *links, outbox=None):
        self.links, self.notices = links, []
        self.collector = Collector(SIGNER, outbox or Outbox(), MemoryPool().lease, self.notices.append)

    async def __aenter__(self):
        for each in self.links:
            self.collector.connect(each)
        return self

    async def __aexit__(self, *_):
        await self.collector.close()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []


@pytest.fixture
def collect(corpus, config):
    """Orders to all, collected: results and seconds."""
    book = order_book(corpus, config)

    async def run(miners, deadline=5.0, quorum=None, most=None):
        present = (await miners.collector.present(1))[:most]
        orders = book.write(1, 0, "2" * 64, book.manifest.ref, [(miner, slot) for slot, miner in enumerate(present)])
        began = time.monotonic()
        results = await miners.collector.collect(orders, {}, deadline=deadline, quorum=quorum or len(orders))
        assert [result.issued for result in results] == orders
        return results, time.monotonic() - began

    return run


# --- a round ---


async def test_all_results_end_a_round_before_its_deadline(collect):
    async with Miners(link(0, seconds=0.05), link(1, fails(Refused(Reason.BUSY)))) as miners:
        results, seconds = await collect(miners)
        assert results[0].received is not None
        assert results[1].failure.reason is Reason.BUSY
        assert seconds < 2


async def test_miners_that_are_all_busy_are_asked_again(monkeypatch, collect):
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    asked = []

    def busy_at_first(issued):
        asked.append(issued.miner.hotkey)
        return fails(Refused(Reason.BUSY))(issued) if len(asked) <= 4 else answer(issued)

    async with Miners(link(0, busy_at_first), link(1, busy_at_first)) as miners:
        results, _ = await collect(miners)
        assert [result.received is not None for result in results] == [True, True]
        assert sorted(asked) == sorted(MINERS[:2] * 3)
        assert miners.notices == ["no miner has time (busy); asking again until the deadline"]


async def test_a_miner_that_has_time_late_has_the_whole_deadline(monkeypatch, collect):
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.2)
    asked = []

    def busy_at_first(issued):
        asked.append(issued)
        return fails(Refused(Reason.BUSY))(issued) if len(asked) == 1 else answer(issued)

    async with Miners(link(0, busy_at_first, 0.3)) as miners:
        results, seconds = await collect(miners, deadline=0.6)  # less than 0.1 of it is left at the second attempt
        assert results[0].received is not None
        assert seconds > 0.6


async def test_busy_miners_are_not_waited_for_where_another_is_present(collect):
    async with Miners(link(0, fails(Refused(Reason.BUSY))), link(1)) as miners:
        results, seconds = await collect(miners, most=1)
        assert [result.failure.reason for result in results] == [Reason.BUSY]
        assert seconds < 1.5


async def test_miners_that_are_always_busy_are_asked_until_the_deadline(monkeypatch, collect):
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    async with Miners(*(link(number, fails(Refused(Reason.BUSY))) for number in range(2))) as miners:
        results, seconds = await collect(miners, deadline=0.3)
        assert [result.failure.reason for result in results] == [Reason.BUSY] * 2
        assert 0.2 <= seconds < 1


async def test_the_deadline_makes_the_rest_late_and_cancels_their_work(collect):
    async with Miners(link(0), link(1, seconds=60)) as miners:
        results, seconds = await collect(miners, deadline=0.2)
        assert results[0].received is not None
        assert (results[1].failure.reason, results[1].failure.culprit) == (Reason.LATE, Culprit.MINER)
        assert 0.2 <= seconds < 2
        await asyncio.sleep(0.01)
        assert miners.links[1].cancelled == [results[1].issued.work_id]
        assert len(await miners.collector.present(1)) == 2  # late is not lost


async def test_without_deadlines_nothing_is_late(collect):
    async with Miners(link(0, seconds=0.2)) as miners:
        miners.collector._deadlines = False
        results, _ = await collect(miners, deadline=0.01)
        assert results[0].received is not None


async def test_a_state_that_never_arrived_is_the_fault_of_the_network(collect):
    async with Miners(link(0, seconds=60), link(1, unsent, 60)) as miners:
        results, _ = await collect(miners, deadline=0.2)
        assert [result.failure.reason for result in results] == [Reason.LATE, Reason.TIMED_OUT]
        assert results[1].failure.culprit is Culprit.NETWORK
        await asyncio.sleep(0.01)
        assert miners.links[1].cancelled == [results[1].issued.work_id]


async def test_a_quorum_of_contributions_ends_the_wait(collect):
    async with Miners(link(0), link(1, seconds=0.05), link(2, seconds=60)) as miners:
        results, seconds = await collect(miners, quorum=2)
        assert [result.received is not None for result in results] == [True, True, False]
        assert (results[2].failure.reason, results[2].failure.culprit) == (Reason.CANCELLED, Culprit.VALIDATOR)
        assert seconds < 2


async def test_failures_are_no_part_of_a_quorum(collect):
    async with Miners(link(0, fails(Refused(Reason.BUSY))), link(1, fails(REFUSED)), link(2, seconds=0.1)) as miners:
        results, _ = await collect(miners, quorum=1)
        assert [result.received is not None for result in results] == [False, False, True]


@pytest.mark.parametrize(("culprit", "answered"), [(Culprit.MINER, True), (Culprit.NETWORK, False)])
async def test_a_failed_contribution_is_one_of_the_miner(collect, culprit, answered):
    failing = fails(Refused(Reason.DIGEST_MISMATCH, "", culprit), answered=True)
    async with Miners(link(0, failing)) as miners:
        results, _ = await collect(miners)
        assert results[0].answered is answered


async def test_a_miner_that_left_before_its_order_is_unreachable(collect, corpus, config):
    async with Miners(link(0), link(1)) as miners:
        present = await miners.collector.present(2)
        book = order_book(corpus, config)
        orders = book.write(1, 0, "2" * 64, book.manifest.ref, [(miner, slot) for slot, miner in enumerate(present)])
        miners.collector.disconnect(present[0].axon, "gone")
        results = await miners.collector.collect(orders, {}, deadline=5.0, quorum=2)
        assert (results[0].failure.reason, miners.links[0].offers) == (Reason.UNREACHABLE, [])
        assert results[1].received is not None


async def test_an_error_of_this_program_ends_the_round_at_once(collect):
    def broken(issued):
        raise SetupError("no such file")

    async with Miners(link(0, broken), link(1, seconds=60)) as miners:
        with pytest.raises(SetupError, match="no such file"):
            await collect(miners)


async def test_an_axon_has_one_buffer_whichever_miner_answers_there(collect):
    pairs = [(0, 1), (2, 3), (1, 4)]
    async with Miners() as miners:
        leased = []
        for pair in pairs:
            links = [link(number, fails(REFUSED)) for number in pair]
            for place, each in enumerate(links):
                each.miner = ConnectedMiner(each.miner.hotkey, f"127.0.0.1:{9000 + place}")
                miners.collector.connect(each)
            await collect(miners)
            leased += [np.frombuffer(each.leased[0], np.uint8).ctypes.data for each in links]
    assert leased == leased[:2] * 3
    assert abs(leased[0] - leased[1]) >= 1 << 20  # contributions of one round never share one


async def test_a_stop_cancels_every_offer(collect):
    async with Miners(link(0, seconds=60), link(1, seconds=60)) as miners:
        task = asyncio.create_task(collect(miners))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- receipts ---


async def settle():
    await asyncio.sleep(0.02)


async def test_receipts_go_to_miners_connected_and_wait_for_the_others():
    outbox = Outbox(receipt_for(hotkey) for hotkey in MINERS[:3])
    links = [link(number) for number in range(3)]
    links[1].failure = NetworkError(Reason.CUT_OFF, "gone")
    async with Miners(*links[:2], outbox=outbox) as miners:
        await settle()  # without a round: what an earlier validator left
        assert [each.receipts for each in links] == [[receipt_for(MINERS[0])], [], []]
        assert miners.notices == ["127.0.0.1:9001: receipt of round 1 not delivered (cut_off: gone); it is kept"]
        waiting = [outbox.waiting(hotkey) for hotkey in MINERS[:3]]
        assert waiting == [[], [receipt_for(MINERS[1])], [receipt_for(MINERS[2])]]

        links[1].failure = None
        outbox.add(receipt_for(hotkey, 2) for hotkey in MINERS[:3])
        miners.collector.deliver()
        miners.collector.connect(links[2])
        await settle()
        for each in links:
            assert each.receipts == [receipt_for(each.miner.hotkey), receipt_for(each.miner.hotkey, 2)]
        assert not outbox


@pytest.mark.parametrize(
    ("reason", "culprit", "kept"),
    [
        (Reason.BAD_MESSAGE, Culprit.VALIDATOR, False),
        (Reason.UNSUPPORTED_VERSION, Culprit.VALIDATOR, False),
        (Reason.TOO_LARGE, Culprit.VALIDATOR, False),
        (Reason.BAD_MESSAGE, Culprit.MINER, True),  # a reason that this version does not know
        (Reason.WRONG_RECEIVER, Culprit.VALIDATOR, True),
        (Reason.UNKNOWN_CALLER, Culprit.VALIDATOR, True),
        (Reason.STALE_REQUEST, Culprit.VALIDATOR, True),
        (Reason.FORWARDED, Culprit.NETWORK, True),
        (Reason.BAD_SIGNATURE, Culprit.VALIDATOR, True),
        (Reason.TIMED_OUT, Culprit.NETWORK, True),
    ],
)
async def test_only_a_receipt_that_a_miner_cannot_read_is_dropped(reason, culprit, kept):
    outbox = Outbox([receipt_for(MINERS[0]), receipt_for(MINERS[0], 2)])
    failing = link(0)
    failing.failure = Refused(reason, "no", culprit)
    async with Miners(failing, outbox=outbox) as miners:
        await settle()
        assert [each.round for each in outbox.waiting(MINERS[0])] == ([1, 2] if kept else [2])
        (line,) = miners.notices
        assert ("; it is kept" in line) is kept
        miners.collector.disconnect("127.0.0.1:9000", "gone")
        miners.collector.connect(failing)  # one attempt a round, however often it connects
        await settle()
        assert sum("receipt of round" in line for line in miners.notices) == 1
        miners.collector.deliver()
        await settle()
        assert [each.round for each in outbox.waiting(MINERS[0])] == ([1, 2] if kept else [])


async def test_a_miner_too_slow_for_a_receipt_is_named(monkeypatch):
    monkeypatch.setattr(module, "_RECEIPT_SECONDS", 0.01)
    slow = link(0)
    slow.before_receipt = lambda: asyncio.sleep(1)
    async with Miners(slow, outbox=Outbox([receipt_for(MINERS[0])])) as miners:
        await asyncio.sleep(0.05)
        assert miners.notices == ["127.0.0.1:9000: receipt of round 1 not delivered (timed out); it is kept"]


async def test_receipts_of_a_lost_miner_are_not_sent_to_its_successor():
    outbox = Outbox([receipt_for(MINERS[0]), receipt_for(MINERS[0], 2)])
    first, second = link(0), link(1)
    second.miner = ConnectedMiner(MINERS[1], first.miner.axon)
    async with Miners(first, outbox=outbox) as miners:

        async def replace():
            miners.collector.connect(second)

        first.before_receipt = replace
        await settle()
        assert [each.round for each in outbox.waiting(MINERS[0])] == [2]
        assert second.receipts == []


async def test_receipts_of_another_validators_key_are_not_sent():
    other = msgspec.structs.replace(receipt_for(MINERS[0]), sender=MINERS[3])
    outbox = Outbox([other])
    async with Miners(link(0), outbox=outbox) as miners:
        await settle()
        assert miners.links[0].receipts == []
        assert outbox.waiting(MINERS[0]) == [other]


async def test_a_miner_that_takes_no_receipts_is_named_when_its_oldest_are_dropped():
    outbox = Outbox(receipt_for(MINERS[0], number) for number in range(1, MAX_WAITING + 1))
    async with Miners(outbox=outbox) as miners:
        miners.collector.deliver()
        assert miners.notices == []
        for number in (MAX_WAITING + 1, MAX_WAITING + 2):
            outbox.add([receipt_for(MINERS[0], number)])
            miners.collector.deliver()
        assert miners.notices == [f"{MINERS[0]}: 100 receipts wait for it; from now on it loses the oldest"]
        assert [each.round for each in outbox.waiting(MINERS[0])] == list(range(3, MAX_WAITING + 3))


async def test_a_slow_miners_receipts_are_sent_once():
    outbox, go, slow = Outbox([receipt_for(MINERS[0])]), asyncio.Event(), link(0)
    slow.before_receipt = go.wait
    async with Miners(slow, outbox=outbox) as miners:
        await settle()
        outbox.add([receipt_for(MINERS[0], 2)])
        miners.collector.deliver()
        go.set()
        await settle()
        assert [each.round for each in slow.receipts] == [1, 2]
