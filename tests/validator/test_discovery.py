"""Which miners are found at the axons, by which key, and what is said of the others; with scripted axons."""

import asyncio
import threading

import pytest

from fedgpt2.config import Axons, Limits
from fedgpt2.errors import Culprit, DiskFullError, NetworkError, NoMinersError, Reason, Refused
from fedgpt2.identity.pins import KeyBook
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.link.address import parse
from fedgpt2.protocol.messages import Info
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.validator import discovery
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.discovery import Discovery

from .conftest import MINERS, SIGNER, order_book, receipt_for

REFUSED = NetworkError(Reason.UNREACHABLE, "connection refused")


class ScriptedClient:
    """An axon's client: the hotkey it shows (or an error to raise, or None for no answer), and how it was called."""

    def __init__(self, shows):
        self.shows = shows
        self.introductions, self.receipts = 0, []
        self.bytes_sent = self.bytes_received = 0
        self.failure = None  # raised for an order

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

    async def post_order(self, envelope):
        raise self.failure

    async def deliver_receipt(self, receipt):
        self.receipts.append(receipt)


class Found:
    """A discovery over scripted axons, and what it noticed and recorded."""

    def __init__(
        self, shown, monkeypatch, *, recorded=(), record=None, check_miner=lambda *_: None, outbox=None, **axons
    ):
        self.clients = [ScriptedClient(shows) for shows in shown]
        made = iter(self.clients)
        monkeypatch.setattr(discovery, "AxonClient", lambda *_: next(made))
        monkeypatch.setattr(discovery, "_PROBE_SECONDS", 0.01)
        monkeypatch.setattr("fedgpt2.link.dial._BACK_OFF", ())
        self.notices, self.records = [], {}
        settings = Axons(**{"wait_seconds": 0.3, **axons})
        self.collector = Collector(
            SIGNER, outbox or Outbox(), MemoryPool().lease, self.notices.append, wait_seconds=settings.wait_seconds
        )
        self.discovery = Discovery(
            None,
            SIGNER,
            settings,
            [parse(str(9000 + number)) for number in range(len(shown))],
            Limits(),
            KeyBook(dict(recorded)),
            self.collector,
            record=record or self.records.__setitem__,
            check_miner=check_miner,
        )

    async def __aenter__(self):
        self.discovery.start()
        return self

    async def __aexit__(self, *_):
        await self.collector.close()
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    async def hotkeys(self, at_least=1):
        return [miner.hotkey for miner in await self.collector.present(at_least)]


async def test_an_unusable_miner_is_noticed_once_and_does_not_reserve_its_key(monkeypatch):
    unfit = [MINERS[1]]

    def check_miner(info, connected):
        return "it knows no fp32" if info.hotkey in unfit else None

    async with Found([MINERS[0], MINERS[1], MINERS[1]], monkeypatch, check_miner=check_miner) as found:
        assert await found.hotkeys() == [MINERS[0]]
        await asyncio.sleep(0.05)
        lines = [f"127.0.0.1:900{place}: it knows no fp32; going on without it" for place in (1, 2)]
        assert sorted(found.notices) == lines
        unfit.clear()
        assert sorted(await found.hotkeys(2)) == sorted([MINERS[0], MINERS[1]])


async def test_miners_connected_count_when_the_last_slot_is_asked_for(monkeypatch, orders):
    def check_miner(info, connected):
        return "no slot is left" if connected else None

    async with Found(MINERS[:2], monkeypatch, check_miner=check_miner) as found:
        assert await found.hotkeys() == [MINERS[0]]
        assert found.notices == ["127.0.0.1:9001: no slot is left; going on without it"]
        found.clients[0].shows = found.clients[0].failure = REFUSED
        written = orders(await found.collector.present(1))
        await found.collector.collect(written, {}, deadline=1.0, quorum=1)
        await asyncio.sleep(0.05)
        assert await found.hotkeys() == [MINERS[1]]


async def test_miners_that_answer_are_present_and_the_others_noticed_once(monkeypatch):
    async with Found([MINERS[0], REFUSED, MINERS[1]], monkeypatch) as found:
        assert await found.hotkeys() == [MINERS[0], MINERS[1]]
        await asyncio.sleep(0.1)
        assert await found.hotkeys() == [MINERS[0], MINERS[1]]
        assert found.clients[1].introductions > 3
        assert found.notices == ["127.0.0.1:9001: unreachable: connection refused; going on without it"]
        assert found.records == {"127.0.0.1:9000": MINERS[0], "127.0.0.1:9002": MINERS[1]}


async def test_a_miner_that_starts_later_is_present_from_then_on(monkeypatch):
    async with Found([REFUSED, MINERS[0]], monkeypatch) as found:
        assert await found.hotkeys() == [MINERS[0]]
        found.clients[0].shows = MINERS[1]
        assert await found.hotkeys(at_least=2) == [MINERS[1], MINERS[0]]  # in the order of --axons


async def test_no_miner_in_time_is_one_line_that_says_why(monkeypatch):
    async with Found([REFUSED, Refused(Reason.FORWARDED, "a proxy")], monkeypatch) as found:
        with pytest.raises(NoMinersError) as caught:
            await found.hotkeys()
    assert str(caught.value) == (
        "no miner answered within 0.3 s (127.0.0.1:9000: unreachable: connection refused; "
        "127.0.0.1:9001: forwarded: a proxy); start miners first"
    )


async def test_too_few_in_time(monkeypatch):
    async with Found([MINERS[0], None], monkeypatch) as found:
        with pytest.raises(NoMinersError, match=r"1 of 2 miners answered within 0\.3 s"):
            await found.hotkeys(at_least=2)
        assert await found.hotkeys() == [MINERS[0]]  # an axon that never answers delays no longer than that


async def test_an_outage_is_said_once_and_waited_out(monkeypatch):
    async with Found([REFUSED], monkeypatch, wait_seconds=0.05) as found:
        waiting = asyncio.create_task(found.collector.present(1, give_up=False))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert found.notices[1:] == [
            "no miner answered within 0.05 s (127.0.0.1:9000: unreachable: connection refused); waiting for them"
        ]
        found.clients[0].shows = MINERS[0]
        assert [miner.hotkey for miner in await waiting] == [MINERS[0]]


async def test_one_hotkey_at_two_axons_is_one_miner(monkeypatch):
    async with Found([MINERS[0], MINERS[0]], monkeypatch) as found:
        assert await found.hotkeys() == [MINERS[0]]
        assert found.notices == [
            f"127.0.0.1:9001: duplicate_hotkey: {MINERS[0]} is already at 127.0.0.1:9000; going on without it"
        ]


@pytest.mark.parametrize("accept_new", [False, True])
async def test_another_key_than_the_recorded_one(monkeypatch, accept_new):
    recorded = {"127.0.0.1:9000": MINERS[0]}
    async with Found([MINERS[1], MINERS[2]], monkeypatch, recorded=recorded, accept_new=accept_new) as found:
        assert await found.hotkeys() == [MINERS[1]] * accept_new + [MINERS[2]]
        assert [("key_changed" in notice) for notice in found.notices] == [True] * (not accept_new)
        assert found.records.get("127.0.0.1:9000") == (MINERS[1] if accept_new else None)


async def test_an_error_in_the_background_ends_the_run(monkeypatch):
    def full(*_):
        raise DiskFullError("no space left")

    async with Found([MINERS[0]], monkeypatch, record=full) as found:
        with pytest.raises(DiskFullError):
            await found.hotkeys()


async def test_the_event_loop_does_not_wait_for_the_record_or_the_check(monkeypatch):
    go, threads = threading.Event(), []

    def slow(*_):
        threads.append(threading.current_thread())
        go.wait(10)

    async with Found(MINERS[:1], monkeypatch, record=slow, check_miner=slow) as found:
        with pytest.raises(NoMinersError):
            await found.hotkeys()
        go.set()
        assert await found.hotkeys() == MINERS[:1]
    assert threading.main_thread() not in threads
    assert len(threads) == 2


@pytest.fixture
def orders(corpus, config):
    """Orders to the miners, issued."""
    book = order_book(corpus, config)

    def issue(miners):
        return book.write(1, 0, "2" * 64, book.manifest.ref, [(miner, slot) for slot, miner in enumerate(miners)])

    return issue


LOSSES = [
    (REFUSED, True),
    (Refused(Reason.WRONG_RECEIVER, "request is for another"), True),
    (Refused(Reason.DATA_UNAVAILABLE), False),
    (NetworkError(Reason.CUT_OFF), False),
    (Refused(Reason.WRONG_MANIFEST, "", Culprit.MINER), False),
]


@pytest.mark.parametrize(("failure", "lost"), LOSSES)
async def test_a_miner_that_is_gone_or_another_is_introduced_again(monkeypatch, orders, failure, lost):
    async with Found(MINERS[:2], monkeypatch) as found:
        issued = orders(await found.collector.present(2))[:1]
        found.clients[0].shows, found.clients[0].failure = MINERS[2], failure  # another miner by now
        before = found.clients[0].introductions
        await found.collector.collect(issued, {}, deadline=1.0, quorum=1)
        await asyncio.sleep(0.05)
        assert (found.clients[0].introductions > before) == lost
        assert await found.hotkeys() == ([] if lost else [MINERS[0]]) + [MINERS[1]]
        assert any("key_changed" in notice for notice in found.notices) == lost


async def test_a_lost_miners_key_may_appear_at_another_axon(monkeypatch, orders):
    async with Found([MINERS[0], REFUSED], monkeypatch) as found:
        issued = orders(await found.collector.present(1))
        found.clients[0].failure = found.clients[0].shows = REFUSED
        await found.collector.collect(issued, {}, deadline=1.0, quorum=1)
        found.clients[1].shows = MINERS[0]
        (miner,) = await found.collector.present(1)
        assert miner.axon == "127.0.0.1:9001"


async def test_a_finished_run_waits_a_moment_for_receipts(monkeypatch):
    outbox = Outbox([receipt_for(MINERS[0]), receipt_for(MINERS[1])])
    async with Found([MINERS[0], REFUSED], monkeypatch, outbox=outbox) as found:
        pass  # nothing left to do: the run was finished before
    assert len(found.clients[0].receipts) == 1
    assert outbox.waiting(MINERS[1]) == [receipt_for(MINERS[1])]
