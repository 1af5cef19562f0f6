"""The gate: a request is good once, for a moment, here, from those who may call; the reason is exact otherwise."""

import time

import pytest
from bittensor import http_auth
from bittensor.sp_core import CRYPTO_ED25519, CRYPTO_SR25519, Keypair
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from fedgpt2.errors import Reason, Refused
from fedgpt2.identity.auth import Gate, Nonces

PATH = "/v1/work/abc?wait=30"


@pytest.fixture
def gate(miner, validator) -> Gate:
    return Gate(miner.hotkey, allowed=frozenset({validator.hotkey}), proxies=False)


def refused(act, *args) -> Reason:
    with pytest.raises(Refused) as caught:
        act(*args)
    return caught.value.reason


def both(gate, headers, body=b"", method="GET", path=PATH) -> Reason:
    """The reason, which must be the same before and after the body."""
    early = refused(gate.precheck, headers, method, path)
    assert refused(gate.verify, headers, body, method, path) is early
    return early


def test_a_signed_request_passes_and_names_its_caller(gate, validator, miner):
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    assert gate.precheck(headers, "POST", PATH) == validator.hotkey
    assert gate.precheck(headers, "POST", PATH) == validator.hotkey  # a look records nothing
    assert gate.verify(headers, b"body", "POST", PATH) == validator.hotkey


def test_it_is_plain_btauth(gate, validator, miner):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    caller = http_auth.verify(
        headers,
        b"",
        method="GET",
        path=PATH,
        self_hotkey_ss58=miner.hotkey,
        nonce_store=http_auth.InMemoryNonceStore(),
    )
    assert caller.hotkey_ss58 == validator.hotkey


def test_a_replay_is_refused_before_the_body(gate, validator, miner):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    gate.verify(headers, b"", "GET", PATH)
    assert both(gate, headers) is Reason.REPLAY


def test_gates_remember_apart(miner, validator):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    for _ in range(2):
        gate = Gate(miner.hotkey, allowed=None, proxies=False)
        assert gate.verify(headers, b"", "GET", PATH) == validator.hotkey


def test_another_receiver_is_refused(gate, validator, stranger):
    assert both(gate, validator.headers("GET", PATH, receiver=stranger.hotkey)) is Reason.WRONG_RECEIVER
    unbound = validator.headers("GET", PATH, receiver=stranger.hotkey)
    del unbound["X-Bittensor-Receiver"]
    assert both(gate, unbound) is Reason.WRONG_RECEIVER


def test_an_unknown_caller_is_refused_unless_all_may_call(gate, stranger, miner):
    headers = stranger.headers("GET", PATH, receiver=miner.hotkey)
    assert both(gate, headers) is Reason.UNKNOWN_CALLER
    anyone = Gate(miner.hotkey, allowed=None, proxies=False)
    assert anyone.verify(headers, b"", "GET", PATH) == stranger.hotkey


@pytest.mark.parametrize("seconds", [-3.0, 11.0, 1e9])
def test_a_request_from_another_time_is_refused(gate, validator, miner, seconds):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    headers["X-Bittensor-Nonce"] = str(max(0, time.time_ns() - int(seconds * 1e9)))
    assert both(gate, headers) is Reason.STALE_REQUEST


def test_a_request_that_ages_while_its_body_arrives_is_refused(miner, validator, monkeypatch):
    gate = Gate(miner.hotkey, allowed=None, proxies=False)
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    monkeypatch.setattr(gate, "precheck", lambda *_: validator.hotkey)
    headers["X-Bittensor-Nonce"] = str(time.time_ns() - 11 * 10**9)
    assert refused(gate.verify, headers, b"", "GET", PATH) is Reason.STALE_REQUEST


@pytest.mark.parametrize(
    ("change", "body", "method", "path"),
    [
        ({}, b"other", "POST", PATH),
        ({}, b"body", "PUT", PATH),
        ({}, b"body", "POST", "/v1/work/abc?wait=31"),
        ({"X-Bittensor-Signature": "0x" + "ab" * 64}, b"body", "POST", PATH),
    ],
)
def test_what_was_not_signed_is_refused(gate, validator, miner, change, body, method, path):
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey) | change
    assert gate.precheck(headers, method, path) == validator.hotkey
    assert refused(gate.verify, headers, body, method, path) is Reason.BAD_SIGNATURE
    good = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    assert gate.verify(good, b"body", "POST", PATH) == validator.hotkey


def test_a_refused_request_does_not_use_up_its_nonce(gate, validator, miner):
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    assert refused(gate.verify, headers, b"tampered", "POST", PATH) is Reason.BAD_SIGNATURE
    assert gate.verify(headers, b"body", "POST", PATH) == validator.hotkey


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Version", "2"),
        ("Version", None),
        ("Hotkey", None),
        ("Hotkey", "5" + "x" * 47),
        ("Hotkey", "\udcff" * 48),
        ("Nonce", None),
        ("Nonce", "-1"),
        ("Nonce", "1e9"),
        ("Nonce", "٣" * 19),
        ("Nonce", "9" * 5000),
        ("Crypto", "ed25519"),
        ("Crypto", "rsa"),
        ("Signature", None),
        ("Signature", "0x" + "zz" * 64),
        ("Signature", "0x" + "ab" * 63),
    ],
)
def test_malformed_headers_are_bad_messages(gate, validator, miner, name, value):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    headers.pop(f"X-Bittensor-{name}", None)
    if value is not None:
        headers[f"X-Bittensor-{name}"] = value
    assert both(gate, headers) is Reason.BAD_MESSAGE


def test_a_header_given_twice_is_a_bad_message(gate, validator, miner):
    headers = CIMultiDict(validator.headers("GET", PATH, receiver=miner.hotkey))
    headers.add("x-bittensor-hotkey", headers["X-Bittensor-Hotkey"])
    assert both(gate, headers) is Reason.BAD_MESSAGE


@pytest.mark.parametrize("path", ["/v1/\udcff", "/ü"])
def test_a_target_that_is_not_ascii_is_a_bad_message(gate, validator, miner, path):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    assert both(gate, headers, path=path) is Reason.BAD_MESSAGE


@pytest.mark.parametrize("name", ["Forwarded", "via", "X-Forwarded-For", "x-forwarded-proto"])
def test_a_proxy_must_be_declared(gate, validator, miner, name):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey) | {name: "1.1 somewhere"}
    assert both(gate, headers) is Reason.FORWARDED
    assert refused(gate.check_forwarded, headers) is Reason.FORWARDED
    declared = Gate(miner.hotkey, allowed=None, proxies=True)
    assert declared.verify(headers, b"", "GET", PATH) == validator.hotkey


def test_another_signature_scheme_is_refused(miner):
    key = Keypair.create_from_seed(b"\x07" * 32, CRYPTO_ED25519)
    headers = http_auth.sign(key, method="GET", path=PATH, receiver_ss58=miner.hotkey)
    assert both(Gate(miner.hotkey, allowed=None, proxies=False), headers) is Reason.BAD_MESSAGE
    assert CRYPTO_SR25519 != CRYPTO_ED25519


names = st.sampled_from(["Version", "Hotkey", "Receiver", "Nonce", "Crypto", "Signature"]).map("X-Bittensor-{}".format)


@given(st.dictionaries(names | st.text(max_size=20), st.text(max_size=80)), st.text(max_size=8), st.text(max_size=40))
def test_arbitrary_headers_are_refused_and_nothing_else(miner, headers, method, path):
    gate = Gate(miner.hotkey, allowed=None, proxies=False)
    assert isinstance(both(gate, headers, method=method, path=path), Reason)


def test_nonces_are_forgotten_after_their_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    nonces = Nonces(retention=10.0)
    assert nonces.check_and_store("a", 1)
    assert not nonces.check_and_store("a", 1)
    assert nonces.check_and_store("b", 1)
    assert nonces.seen("a", 1)
    now[0] += 10.0
    assert not nonces.seen("a", 1)
    assert nonces.check_and_store("a", 1)
