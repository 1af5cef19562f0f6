"""One miner's share of a round: what is tried again, what ends it, and whose fault it is."""

import time
from types import SimpleNamespace

import msgspec
import pytest
from bittensor.sp_core import Keypair

from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, NetworkError, ProtocolError, Reason, Refused
from fedgpt2.identity.signing import Signer
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.messages import Accepted, Contribution, Failure, Lack, WorkStatus
from fedgpt2.validator import exchange
from fedgpt2.validator.exchange import Exchange
from fedgpt2.validator.peers import ConnectedMiner, Traffic

from .conftest import FP32, answer, order_book

MINER = Signer(Keypair.create_from_uri("//Miner0"))
OTHER = Signer(Keypair.create_from_uri("//Miner1"))
CUT = NetworkError(Reason.CUT_OFF, "cut")
GONE = NetworkError(Reason.UNREACHABLE, "connection refused")
STATE = Blob.of("fp32", b"", memoryview(b"state"))


@pytest.fixture
def ticket(corpus, config):
    (written,) = order_book(corpus, config).write(
        1, 0, "2" * 64, STATE.ref, [(ConnectedMiner(MINER.hotkey, "axon"), 0)]
    )
    return written


def lacking(have, digest=STATE.ref.digest):
    return (Lack(digest=digest, have=have),)


class ToldClient:
    """A miner with a good answer, and a list of what goes wrong first, by step."""

    def __init__(self, ticket, envelope=None, lacks=(), first=(), **troubles):
        """`first` are answers given before `envelope`, one each time it is asked; None for pending.

        `lacks` are told in turn as well, the last ones ever again.
        """
        self.bytes_sent, self.bytes_received = 0, 0
        self.calls, self.troubles = [], {step: list(errors) for step, errors in troubles.items()}
        self.outcome = answer(ticket)
        self.envelope = envelope or MINER.seal("contribution", self.outcome.answer.contribution)
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
        header = FP32.header(self.outcome.ticket.order.model.schema())
        whole = header + bytes(self.outcome.answer.data)
        while incoming.have < len(whole):
            await incoming.feed(whole[incoming.have : incoming.have + len(whole) // 3 + 1])
            self._step("get")
        self.bytes_received += len(whole)
        return await incoming.finish()

    async def nothing(self):
        self._step("none")


async def run(ticket, client, monkeypatch, pauses=(0.0, 0.0), apart=0.0):
    monkeypatch.setattr(exchange, "_PAUSES", pauses)
    monkeypatch.setattr(exchange, "_POLL_APART", apart)
    blobs = {STATE.ref.digest: STATE}
    traffic = Traffic()
    made = Exchange(client, ticket, blobs, Limits(), traffic, lambda size: memoryview(bytearray(size)))
    outcome = await made.run()
    assert outcome.traffic is traffic
    return outcome


async def test_order_state_answer_gradient(ticket, monkeypatch):
    client = ToldClient(ticket, lacks=[lacking(2)])
    outcome = await run(ticket, client, monkeypatch)
    assert client.calls == ["order", "put", "wait", "get", "get", "get"]
    assert outcome.answered
    assert bytes(outcome.answer.data) == bytes(client.outcome.answer.data)
    assert (outcome.traffic.bytes_down, outcome.traffic.bytes_up) == (3, client.outcome.answer.contribution.blob.length)
    assert 0 < outcome.traffic.sent <= outcome.traffic.described <= outcome.traffic.received


async def test_a_broken_link_is_tried_again_with_the_same_order(ticket, monkeypatch):
    client = ToldClient(ticket, order=[GONE], wait=[CUT])
    outcome = await run(ticket, client, monkeypatch)
    assert outcome.answer is not None
    assert client.calls[:4] == ["order", "order", "wait", "order"]


async def test_a_transfer_goes_on_where_it_was_cut_and_progress_earns_new_tries(ticket, monkeypatch):
    client = ToldClient(ticket, get=[CUT, CUT], wait=[CUT, CUT, None, CUT, None])
    outcome = await run(ticket, client, monkeypatch)
    assert outcome.answer is not None
    assert client.calls.count("get") == 3  # a third of the body each: nothing twice


async def test_an_upload_that_gets_further_each_time_earns_new_tries(ticket, monkeypatch):
    client = ToldClient(ticket, lacks=[lacking(have) for have in (0, 1, 2, 3, 4)], put=[CUT] * 5)
    outcome = await run(ticket, client, monkeypatch)
    assert outcome.answer is not None
    assert client.calls.count("put") == 6


async def test_an_upload_that_begins_anew_each_time_is_given_up(ticket, monkeypatch):
    client = ToldClient(ticket, lacks=[lacking(2), lacking(0)], put=[CUT] * 9)
    outcome = await run(ticket, client, monkeypatch)
    assert (outcome.failure, client.calls.count("put")) == (CUT, 3)


async def test_a_miner_that_says_it_is_at_work_earns_new_tries(ticket, monkeypatch):
    client = ToldClient(ticket, first=[None] * 5, wait=[None, CUT] * 5)
    outcome = await run(ticket, client, monkeypatch)
    assert outcome.answer is not None
    assert client.calls.count("order") == 6


async def test_an_answer_of_which_nothing_comes_is_given_up(ticket, monkeypatch):
    client = ToldClient(ticket, none=[CUT] * 9)
    client.get_blob = lambda _: client.nothing()
    outcome = await run(ticket, client, monkeypatch)
    assert (outcome.failure, client.calls.count("none")) == (CUT, 3)


@pytest.mark.parametrize(("digest", "asked"), [("f" * 64, 2), (None, 1)])
async def test_the_time_of_commitment_is_that_of_the_digest(ticket, monkeypatch, digest, asked):
    good = answer(ticket).answer.contribution
    blob = msgspec.structs.replace(good.blob, digest=digest or good.blob.digest)
    told = MINER.seal("contribution", msgspec.structs.replace(good, blob=blob, seconds=9.0))
    client = ToldClient(ticket, first=[told], get=[CUT])
    monkeypatch.setattr(exchange, "time", SimpleNamespace(monotonic=lambda: client.calls.count("wait")))
    outcome = await run(ticket, client, monkeypatch)
    assert outcome.answer.contribution == good
    assert outcome.traffic.described == asked
    assert outcome.traffic.received == 2


async def test_after_the_last_try_it_is_a_failure_of_the_link(ticket, monkeypatch):
    client = ToldClient(ticket, order=[GONE] * 9)
    outcome = await run(ticket, client, monkeypatch)
    assert client.calls == ["order"] * 3
    assert (outcome.answer, outcome.failure, outcome.answered) == (None, GONE, False)
    assert outcome.failure.culprit is Culprit.NETWORK


async def test_a_refusal_is_not_tried_again(ticket, monkeypatch):
    client = ToldClient(ticket, order=[Refused(Reason.BUSY, "later")])
    outcome = await run(ticket, client, monkeypatch)
    assert client.calls == ["order"]
    assert (outcome.failure.reason, outcome.answered) == (Reason.BUSY, False)


@pytest.mark.parametrize("word", [Reason.CANCELLED, Reason.UNREACHABLE])
async def test_a_miner_that_says_what_it_cannot_know_gave_up(ticket, monkeypatch, word):
    """Nothing is called off while we listen, and who says that nobody is there is there."""
    outcome = await run(ticket, ToldClient(ticket, order=[Refused(word, "not now")]), monkeypatch)
    assert (outcome.failure.reason, outcome.failure.culprit) == (Reason.COMPUTE_FAILED, Culprit.MINER)


async def test_a_miner_that_takes_the_state_again_and_again_is_given_up(ticket, monkeypatch):
    """Each cut comes after all was sent, and the miner owns to one byte more of it each time."""
    client = ToldClient(ticket, lacks=[lacking(have) for have in (0, 1, 2, 3, 4)])

    async def put(blob, have):
        client.calls.append("put")
        client.bytes_sent += blob.ref.length
        raise CUT

    client.put_blob = put
    outcome = await run(ticket, client, monkeypatch)
    assert (outcome.failure.reason, outcome.failure.culprit) == (Reason.TIMED_OUT, Culprit.NETWORK)
    assert client.calls.count("put") == 3


async def test_a_miner_that_answers_pending_at_once_is_asked_no_sooner(ticket, monkeypatch):
    client = ToldClient(ticket, first=[None] * 4)
    began = time.monotonic()
    outcome = await run(ticket, client, monkeypatch, apart=0.05)
    assert outcome.answer is not None
    assert time.monotonic() - began >= 0.2


async def test_a_blob_named_twice_is_sent_not_once(ticket, monkeypatch):
    client = ToldClient(ticket, lacks=[lacking(0) * 2])
    outcome = await run(ticket, client, monkeypatch)
    assert (outcome.failure.reason, outcome.failure.culprit) == (Reason.BAD_MESSAGE, Culprit.MINER)
    assert "put" not in client.calls


async def test_an_answer_told_with_other_words_goes_on_where_it_was_cut(ticket, monkeypatch):
    good = answer(ticket).answer.contribution
    told = MINER.seal("contribution", msgspec.structs.replace(good, claimed_loss=1.0, seconds=9.0))
    client = ToldClient(ticket, first=[told], get=[CUT])
    outcome = await run(ticket, client, monkeypatch)
    assert outcome.answer is not None
    assert client.calls.count("get") == 3  # a third of the body each: nothing twice


async def test_a_blob_nobody_named_is_not_sent(ticket, monkeypatch):
    outcome = await run(ticket, ToldClient(ticket, lacks=[lacking(0, "f" * 64)]), monkeypatch)
    assert (outcome.failure.reason, outcome.failure.culprit) == (Reason.BAD_MESSAGE, Culprit.MINER)


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
async def test_a_failure_the_miner_signs_is_its_word(ticket, monkeypatch, word, reason):
    order = ticket.order
    failure = Failure(
        run_id=order.run_id,
        round=order.round,
        work_id=ticket.work_id,
        sender=MINER.hotkey,
        receiver=order.sender,
        reason=word,
        detail="no text",
    )
    outcome = await run(ticket, ToldClient(ticket, MINER.seal("failure", failure)), monkeypatch)
    assert (outcome.failure.reason, outcome.failure.detail) == (reason, "the miner says: no text")
    assert not outcome.answered


@pytest.mark.parametrize("signer", [OTHER, MINER])
async def test_an_answer_that_is_not_to_this_order_is_refused_unfetched(ticket, monkeypatch, signer):
    good = answer(ticket).answer.contribution
    other = {name: getattr(good, name) for name in good.__struct_fields__} | {"round": 0, "sender": signer.hotkey}
    client = ToldClient(ticket, signer.seal("contribution", Contribution(**other)))
    outcome = await run(ticket, client, monkeypatch)
    assert "get" not in client.calls
    assert outcome.answered
    assert outcome.failure.culprit is Culprit.MINER
    assert outcome.failure.reason is (Reason.WRONG_ORDER if signer is MINER else Reason.BAD_SIGNATURE)


async def test_a_body_the_miner_spoils_is_its_fault(ticket, monkeypatch):
    spoiled = ProtocolError("another", Reason.DIGEST_MISMATCH, Culprit.MINER)
    outcome = await run(ticket, ToldClient(ticket, get=[None, spoiled]), monkeypatch)
    assert (outcome.failure.reason, outcome.answered) == (Reason.DIGEST_MISMATCH, True)
