"""Envelopes: the right kind, by the right signer, about themselves; everything else refused with the right blame."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import Culprit, PeerError, ProtocolError, Reason
from fedgpt2.identity.signing import open_envelope
from fedgpt2.protocol.messages import Envelope, Failure, Receipt, decode, encode

ZERO = "0" * 64


def failure(signer, receiver="v") -> Failure:
    return Failure(
        run_id=ZERO, round=1, work_id=ZERO, sender=signer.hotkey, receiver=receiver, reason="busy", detail="ü"
    )


def refusal(envelope, kind="failure", type_=Failure, signer=None) -> PeerError:
    with pytest.raises(PeerError) as caught:
        open_envelope(envelope, kind, type_, signer=signer)
    return caught.value


def with_(envelope, **changes) -> Envelope:
    tree = json.loads(encode(envelope)) | changes
    return decode(json.dumps(tree), Envelope)


def test_what_is_sealed_opens(miner):
    message = failure(miner)
    envelope = decode(encode(miner.seal("failure", message)), Envelope)
    assert open_envelope(envelope, "failure", Failure, signer=miner.hotkey) == message
    assert open_envelope(envelope, "failure", Failure, signer=None) == message


def test_another_signer_is_refused(miner, stranger):
    error = refusal(stranger.seal("failure", failure(stranger)), signer=miner.hotkey)
    assert (error.reason, error.culprit) == (Reason.BAD_SIGNATURE, Culprit.MINER)


def test_a_message_must_name_its_signer_as_sender(miner, stranger):
    error = refusal(stranger.seal("failure", failure(miner)))
    assert error.reason is Reason.BAD_SIGNATURE


@given(st.data())
def test_any_change_to_the_payload_is_noticed(miner, data):
    envelope = miner.seal("failure", failure(miner))
    place = data.draw(st.integers(0, len(envelope.payload) - 1))
    other = data.draw(st.characters(exclude_categories=["Cs"]))
    payload = envelope.payload[:place] + other + envelope.payload[place + 1 :]
    if payload != envelope.payload:
        assert refusal(with_(envelope, payload=payload)).reason is Reason.BAD_SIGNATURE


def test_a_signature_is_good_for_its_kind_only(miner):
    envelope = miner.seal("failure", failure(miner))
    assert isinstance(refusal(envelope, kind="contribution"), ProtocolError)
    assert refusal(with_(envelope, kind="contribution"), kind="contribution").reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("signer", ["nobody", "x" * 48, "ü"])
def test_a_signer_that_is_no_hotkey_is_refused(miner, signer):
    assert refusal(with_(miner.seal("failure", failure(miner)), signer=signer)).reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(("kind", "blamed"), [("failure", Culprit.MINER), ("receipt", Culprit.VALIDATOR)])
def test_a_signed_payload_of_another_type_blames_its_author(miner, kind, blamed):
    type_ = {"failure": Receipt, "receipt": Failure}[kind]
    message = failure(miner) if kind == "failure" else receipt(miner)
    error = refusal(miner.seal(kind, message), kind=kind, type_=type_)
    assert (error.reason, error.culprit) == (Reason.BAD_MESSAGE, blamed)


def test_unknown_kinds_are_our_own_mistake(miner):
    with pytest.raises(ValueError, match="no messages of kind"):
        miner.seal("rumour", failure(miner))


def receipt(signer) -> Receipt:
    return Receipt(
        run_id=ZERO,
        round=1,
        sender=signer.hotkey,
        receiver="m",
        work_id=ZERO,
        status="admitted",
        applied=True,
        model=ZERO,
        ledger_head=ZERO,
    )
