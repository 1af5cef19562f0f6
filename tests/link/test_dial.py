"""An order over HTTP: what is retried, what ends it, and whose fault it is."""

import time
from types import SimpleNamespace

import msgspec
import pytest

from fedgpt2.errors import Culprit, NetworkError, ProtocolError, Reason, Refused
from fedgpt2.link import base, dial
from fedgpt2.link.base import Traffic
from fedgpt2.link.dial import DialLink
from fedgpt2.protocol.messages import Accepted, Failure, Lack, WorkStatus

from .orders import CONNECTED, LIMITS, MINER, OTHER, STATE, collect, contribution, gradient, issue

CUT = NetworkError(Reason.CUT_OFF, "cut")
GONE = NetworkError(Reason.UNREACHABLE, "connection refused")
GRADIENT = gradient()


@pytest.fixture
def issued():
    return issue()


def lacking(have, digest=STATE.ref.digest):
    return (Lack(digest=digest, have=have),)


class ScriptedClient:
    """An axon's client with a good answer, and a list of what goes wrong first, by step."""

    def __init__(self, issued, envelope=None, lacks=(), first=(), **troubles):
        """`first` are answers given before `envelope`, one a poll, None for pending; so are `lacks`, one an order."""
        self.bytes_sent, self.bytes_received = 0, 0
        self.calls, self.troubles = [], {step: list(errors) for step, errors in troubles.items()}
        self.contribution = contribution(issued, GRADIENT.ref)
        self.envelope = envelope or MINER.seal("contribution", self.contribution)
        self.lacks, self.first = list(lacks) or [()], list(first)

    def _step(self, name):
        self.calls.append(name)
        if self.troubles.get(name):
            error = self.troubles[name].pop(0)
            if error is not None:
                raise error

    async def post_order(self, envelope):
        self._step("order")
        lacks = self.lacks.pop(0) if len(self.lacks) > 1 else self.lacks[0]
        return Accepted(work_id="0" * 64, lacks=lacks)

    async def put_blob(self, blob, have):
        self._step("put")
        self.bytes_sent += blob.ref.length - have

    async def wait(self, work_id, seconds):
        self._step("wait")
        answer = self.first.pop(0) if self.first else self.envelope
        return WorkStatus(state="done" if answer else "pending", answer=answer)

    async def get_blob(self, incoming):
        whole = GRADIENT.header + bytes(GRADIENT.data)
        while incoming.have < len(whole):
            await incoming.feed(whole[incoming.have : incoming.have + len(whole) // 3 + 1])
            self._step("get")
        self.bytes_received += len(whole)
        return await incoming.finish()

    async def nothing(self):
        self._step("none")


async def run(issued, client, monkeypatch, pauses=(0.0, 0.0), apart=0.0, lost=lambda _why: None):
    monkeypatch.setattr(dial, "_BACK_OFF", pauses)
    monkeypatch.setattr(dial, "_POLL_APART", apart)
    return await collect(DialLink(client, CONNECTED, LIMITS, lost), issued)


async def test_order_state_answer_gradient(issued, monkeypatch):
    client = ScriptedClient(issued, lacks=[lacking(2)])
    result = await run(issued, client, monkeypatch)
    assert client.calls == ["order", "put", "wait", "get", "get", "get"]
    assert result.answered
    assert bytes(result.received.data) == bytes(GRADIENT.data)
    assert (result.traffic.bytes_down, result.traffic.bytes_up) == (3, GRADIENT.ref.length)
    assert 0 < result.traffic.sent <= result.traffic.described <= result.traffic.received


async def test_a_broken_link_is_tried_again_with_the_same_order(issued, monkeypatch):
    client = ScriptedClient(issued, order=[GONE], wait=[CUT])
    result = await run(issued, client, monkeypatch)
    assert result.received is not None
    assert client.calls[:4] == ["order", "order", "wait", "order"]


async def test_a_transfer_goes_on_where_it_was_cut_and_progress_earns_new_tries(issued, monkeypatch):
    client = ScriptedClient(issued, get=[CUT, CUT], wait=[CUT, CUT, None, CUT, None])
    result = await run(issued, client, monkeypatch)
    assert result.received is not None
    assert client.calls.count("get") == 3  # a third of the body each: nothing twice


async def test_an_upload_that_gets_further_each_time_earns_new_tries(issued, monkeypatch):
    client = ScriptedClient(issued, lacks=[lacking(have) for have in (0, 1, 2, 3, 4)], put=[CUT] * 5)
    result = await run(issued, client, monkeypatch)
    assert result.received is not None
    assert client.calls.count("put") == 6


async def test_an_upload_that_begins_anew_each_time_is_given_up(issued, monkeypatch):
    client = ScriptedClient(issued, lacks=[lacking(2), lacking(0)], put=[CUT] * 9)
    result = await run(issued, client, monkeypatch)
    assert (result.failure, client.calls.count("put")) == (CUT, 3)


async def test_a_miner_that_says_it_is_at_work_earns_new_tries(issued, monkeypatch):
    client = ScriptedClient(issued, first=[None] * 5, wait=[None, CUT] * 5)
    result = await run(issued, client, monkeypatch)
    assert result.received is not None
    assert client.calls.count("order") == 6


async def test_an_answer_of_which_nothing_comes_is_given_up(issued, monkeypatch):
    client = ScriptedClient(issued, none=[CUT] * 9)
    client.get_blob = lambda _: client.nothing()
    result = await run(issued, client, monkeypatch)
    assert (result.failure, client.calls.count("none")) == (CUT, 3)


@pytest.mark.parametrize(("digest", "asked"), [("f" * 64, 2), (None, 1)])
async def test_the_time_of_commitment_is_that_of_the_digest(issued, monkeypatch, digest, asked):
    good = contribution(issued, GRADIENT.ref)
    blob = msgspec.structs.replace(good.blob, digest=digest or good.blob.digest)
    told = MINER.seal("contribution", msgspec.structs.replace(good, blob=blob, seconds=9.0))
    client = ScriptedClient(issued, first=[told], get=[CUT])
    monkeypatch.setattr(dial, "_BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(dial, "_POLL_APART", 0.0)
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: client.calls.count("wait")))
    link, traffic = DialLink(client, CONNECTED, LIMITS), Traffic(began=0.0)
    received = await link.offer(issued, {STATE.ref.digest: STATE}, traffic, lambda size: memoryview(bytearray(size)))
    assert received.contribution == good
    assert (traffic.described, traffic.received) == (asked, 2)


async def test_after_the_last_try_it_is_a_failure_of_the_link(issued, monkeypatch):
    client = ScriptedClient(issued, order=[GONE] * 9)
    result = await run(issued, client, monkeypatch)
    assert client.calls == ["order"] * 3
    assert (result.received, result.failure, result.answered) == (None, GONE, False)
    assert result.failure.culprit is Culprit.NETWORK


async def test_a_refusal_is_not_tried_again(issued, monkeypatch):
    client = ScriptedClient(issued, order=[Refused(Reason.DATA_UNAVAILABLE, "later")])
    result = await run(issued, client, monkeypatch)
    assert client.calls == ["order"]
    assert (result.failure.reason, result.answered) == (Reason.DATA_UNAVAILABLE, False)


@pytest.mark.parametrize("word", [Reason.CANCELLED, Reason.UNREACHABLE])
async def test_a_miner_that_says_what_it_cannot_know_gave_up(issued, monkeypatch, word):
    """Nothing is called off while we listen, and who says that nobody is there is there."""
    result = await run(issued, ScriptedClient(issued, order=[Refused(word, "not now")]), monkeypatch)
    assert (result.failure.reason, result.failure.culprit) == (Reason.COMPUTE_FAILED, Culprit.MINER)


async def test_a_miner_that_takes_the_state_again_and_again_is_given_up(issued, monkeypatch):
    """Each cut comes after all was sent, and the miner owns to one byte more of it each time."""
    client = ScriptedClient(issued, lacks=[lacking(have) for have in (0, 1, 2, 3, 4)])

    async def put(blob, have):
        client.calls.append("put")
        client.bytes_sent += blob.ref.length
        raise CUT

    client.put_blob = put
    result = await run(issued, client, monkeypatch)
    assert (result.failure.reason, result.failure.culprit) == (Reason.TIMED_OUT, Culprit.NETWORK)
    assert client.calls.count("put") == 3


async def test_a_miner_that_answers_pending_at_once_is_asked_no_sooner(issued, monkeypatch):
    client = ScriptedClient(issued, first=[None] * 4)
    began = time.monotonic()
    result = await run(issued, client, monkeypatch, apart=0.05)
    assert result.received is not None
    assert time.monotonic() - began >= 0.2


async def test_a_blob_named_twice_is_sent_not_once(issued, monkeypatch):
    client = ScriptedClient(issued, lacks=[lacking(0) * 2])
    result = await run(issued, client, monkeypatch)
    assert (result.failure.reason, result.failure.culprit) == (Reason.BAD_MESSAGE, Culprit.MINER)
    assert "put" not in client.calls


async def test_an_answer_told_with_other_words_goes_on_where_it_was_cut(issued, monkeypatch):
    good = contribution(issued, GRADIENT.ref)
    told = MINER.seal("contribution", msgspec.structs.replace(good, claimed_loss=1.0, seconds=9.0))
    client = ScriptedClient(issued, first=[told], get=[CUT])
    result = await run(issued, client, monkeypatch)
    assert result.received is not None
    assert client.calls.count("get") == 3  # a third of the body each: nothing twice


async def test_a_blob_nobody_named_is_not_sent(issued, monkeypatch):
    result = await run(issued, ScriptedClient(issued, lacks=[lacking(0, "f" * 64)]), monkeypatch)
    assert (result.failure.reason, result.failure.culprit) == (Reason.BAD_MESSAGE, Culprit.MINER)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("data_unavailable", Reason.DATA_UNAVAILABLE),
        ("tired", Reason.COMPUTE_FAILED),
        ("cancelled", Reason.COMPUTE_FAILED),
        ("busy", Reason.COMPUTE_FAILED),
        ("unreachable", Reason.COMPUTE_FAILED),
    ],
)
async def test_a_failure_the_miner_signs_is_its_word(issued, monkeypatch, word, reason):
    order = issued.order
    failure = Failure(
        run_id=order.run_id,
        round=order.round,
        work_id=issued.work_id,
        sender=MINER.hotkey,
        receiver=order.sender,
        reason=word,
        detail="no text",
    )
    result = await run(issued, ScriptedClient(issued, MINER.seal("failure", failure)), monkeypatch)
    assert (result.failure.reason, result.failure.detail) == (reason, "the miner says: no text")
    assert not result.answered


@pytest.mark.parametrize("signer", [OTHER, MINER])
async def test_an_answer_that_is_not_to_this_order_is_refused_unfetched(issued, monkeypatch, signer):
    other = contribution(issued, GRADIENT.ref, round=0, sender=signer.hotkey)
    client = ScriptedClient(issued, signer.seal("contribution", other))
    result = await run(issued, client, monkeypatch)
    assert "get" not in client.calls
    assert result.answered
    assert result.failure.culprit is Culprit.MINER
    assert result.failure.reason is (Reason.WRONG_ORDER if signer is MINER else Reason.BAD_SIGNATURE)


async def test_a_body_the_miner_spoils_is_its_fault(issued, monkeypatch):
    spoiled = ProtocolError("another", Reason.DIGEST_MISMATCH, Culprit.MINER)
    result = await run(issued, ScriptedClient(issued, get=[None, spoiled]), monkeypatch)
    assert (result.failure.reason, result.answered) == (Reason.DIGEST_MISMATCH, True)


LOST = [
    (GONE, True),
    (Refused(Reason.WRONG_RECEIVER, "request is for another"), True),
    (Refused(Reason.COMPUTE_FAILED), False),
    (CUT, False),
    (Refused(Reason.UNREACHABLE, "the miner's word"), False),
]


@pytest.mark.parametrize(("failure", "expected"), LOST)
async def test_a_miner_that_is_gone_or_another_is_reported_lost(issued, monkeypatch, failure, expected):
    lost = []
    result = await run(issued, ScriptedClient(issued, order=[failure] * 9), monkeypatch, lost=lost.append)
    assert lost == ([str(result.failure)] if expected else [])


async def test_an_answer_that_names_another_receiver_is_no_sign_of_loss(issued, monkeypatch):
    lost, other = [], contribution(issued, GRADIENT.ref, receiver=OTHER.hotkey)
    client = ScriptedClient(issued, MINER.seal("contribution", other))
    result = await run(issued, client, monkeypatch, lost=lost.append)
    assert (result.failure.reason, result.answered, lost) == (Reason.WRONG_RECEIVER, True, [])
