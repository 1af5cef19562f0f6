"""A signed request is accepted once, for ten seconds, at its receiver, from allowed callers."""

import hashlib
import time

import pytest
from bittensor import http_auth
from bittensor.sp_core import CRYPTO_ED25519, CRYPTO_SR25519, Keypair
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from fedgpt2.errors import Reason, Refused
from fedgpt2.identity.auth import Authenticator, Nonces, announced_digest, content_digest

PATH = "/v1/work/abc?wait=30"


def sha(body=b"") -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def authenticator(miner, validator) -> Authenticator:
    return Authenticator(miner.hotkey, allowed=frozenset({validator.hotkey}), proxies=False)


def refused(act, *args) -> Reason:
    with pytest.raises(Refused) as caught:
        act(*args)
    return caught.value.reason


def both(authenticator, headers, body=b"", method="GET", path=PATH) -> Reason:
    """The reason, which must be the same before and after the body."""
    early = refused(authenticator.check_headers, headers, method, path)
    assert refused(authenticator.verify, headers, sha(body), method, path) is early
    return early


def test_a_signed_request_passes_and_names_its_caller(authenticator, validator, miner):
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    assert authenticator.check_headers(headers, "POST", PATH) == validator.hotkey
    assert authenticator.check_headers(headers, "POST", PATH) == validator.hotkey  # a look records nothing
    assert authenticator.verify(headers, sha(b"body"), "POST", PATH) == validator.hotkey


def test_the_signed_lines_are_those_of_btauth(authenticator, validator, miner, monkeypatch):
    seen = []
    monkeypatch.setattr("fedgpt2.identity.auth.verify", lambda hotkey, message, signature: seen.append(message) or True)
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    authenticator.verify(headers, sha(b"body"), "POST", PATH)
    expected = http_auth.build_payload(
        scheme="sr25519",
        method="POST",
        path=PATH,
        body=b"body",
        nonce_ns=int(headers["X-Bittensor-Nonce"]),
        sender_ss58=validator.hotkey,
        receiver_ss58=miner.hotkey,
    )
    assert seen == [expected]


@pytest.mark.parametrize("body", [b"", b"body", bytes(1000)])
def test_an_announced_digest_is_read(body):
    assert announced_digest({"content-Digest": content_digest(body)}) == sha(body)


def test_the_signer_announces_the_digest_of_a_body(validator, miner):
    assert announced_digest(validator.headers("POST", PATH, b"body", receiver=miner.hotkey)) == sha(b"body")
    assert announced_digest(validator.headers("GET", PATH, receiver=miner.hotkey)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Digest": "sha-512=:AAAA:"},
        {"Content-Digest": content_digest(b"body").rstrip(":")},
        {"Content-Digest": "sha-256=:\udcff:"},
        CIMultiDict([("Content-Digest", content_digest(b"a")), ("content-digest", content_digest(b"a"))]),
    ],
)
def test_a_digest_that_cannot_be_read_is_not_announced(headers):
    assert announced_digest(headers) is None


def test_it_is_plain_btauth(authenticator, validator, miner):
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


def test_a_replay_is_refused_before_the_body(authenticator, validator, miner):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    authenticator.verify(headers, sha(b""), "GET", PATH)
    assert both(authenticator, headers) is Reason.REPLAY


def test_authenticators_remember_apart(miner, validator):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    for _ in range(2):
        authenticator = Authenticator(miner.hotkey, allowed=None, proxies=False)
        assert authenticator.verify(headers, sha(b""), "GET", PATH) == validator.hotkey


def test_another_receiver_is_refused(authenticator, validator, stranger):
    assert both(authenticator, validator.headers("GET", PATH, receiver=stranger.hotkey)) is Reason.WRONG_RECEIVER
    unbound = validator.headers("GET", PATH, receiver=stranger.hotkey)
    del unbound["X-Bittensor-Receiver"]
    assert both(authenticator, unbound) is Reason.WRONG_RECEIVER


def test_an_unknown_caller_is_refused_unless_all_may_call(authenticator, stranger, miner):
    headers = stranger.headers("GET", PATH, receiver=miner.hotkey)
    assert both(authenticator, headers) is Reason.UNKNOWN_CALLER
    anyone = Authenticator(miner.hotkey, allowed=None, proxies=False)
    assert anyone.verify(headers, sha(b""), "GET", PATH) == stranger.hotkey


@pytest.mark.parametrize("seconds", [-3.0, 11.0, 1e9])
def test_a_request_from_another_time_is_refused(authenticator, validator, miner, seconds):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    headers["X-Bittensor-Nonce"] = str(max(0, time.time_ns() - int(seconds * 1e9)))
    assert both(authenticator, headers) is Reason.STALE_REQUEST


@pytest.mark.parametrize(
    ("change", "body", "method", "path"),
    [
        ({}, b"other", "POST", PATH),
        ({}, b"body", "PUT", PATH),
        ({}, b"body", "POST", "/v1/work/abc?wait=31"),
        ({"X-Bittensor-Signature": "0x" + "ab" * 64}, b"body", "POST", PATH),
    ],
)
def test_what_was_not_signed_is_refused(authenticator, validator, miner, change, body, method, path):
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey) | change
    assert authenticator.check_headers(headers, method, path) == validator.hotkey
    assert refused(authenticator.verify, headers, sha(body), method, path) is Reason.BAD_SIGNATURE
    good = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    assert authenticator.verify(good, sha(b"body"), "POST", PATH) == validator.hotkey


def test_a_refused_request_does_not_use_up_its_nonce(authenticator, validator, miner):
    headers = validator.headers("POST", PATH, b"body", receiver=miner.hotkey)
    assert refused(authenticator.verify, headers, sha(b"tampered"), "POST", PATH) is Reason.BAD_SIGNATURE
    assert authenticator.verify(headers, sha(b"body"), "POST", PATH) == validator.hotkey


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
def test_malformed_headers_are_bad_messages(authenticator, validator, miner, name, value):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    headers.pop(f"X-Bittensor-{name}", None)
    if value is not None:
        headers[f"X-Bittensor-{name}"] = value
    assert both(authenticator, headers) is Reason.BAD_MESSAGE


def test_a_header_given_twice_is_a_bad_message(authenticator, validator, miner):
    headers = CIMultiDict(validator.headers("GET", PATH, receiver=miner.hotkey))
    headers.add("x-bittensor-hotkey", headers["X-Bittensor-Hotkey"])
    assert both(authenticator, headers) is Reason.BAD_MESSAGE


@pytest.mark.parametrize("path", ["/v1/\udcff", "/ü"])
def test_a_target_that_is_not_ascii_is_a_bad_message(authenticator, validator, miner, path):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey)
    assert both(authenticator, headers, path=path) is Reason.BAD_MESSAGE


@pytest.mark.parametrize("name", ["Forwarded", "via", "X-Forwarded-For", "x-forwarded-proto"])
def test_a_proxy_must_be_declared(authenticator, validator, miner, name):
    headers = validator.headers("GET", PATH, receiver=miner.hotkey) | {name: "1.1 somewhere"}
    assert both(authenticator, headers) is Reason.FORWARDED
    assert refused(authenticator.check_forwarded, headers) is Reason.FORWARDED
    declared = Authenticator(miner.hotkey, allowed=None, proxies=True)
    assert declared.verify(headers, sha(b""), "GET", PATH) == validator.hotkey


def test_another_signature_scheme_is_refused(miner):
    key = Keypair.create_from_seed(b"\x07" * 32, CRYPTO_ED25519)
    headers = http_auth.sign(key, method="GET", path=PATH, receiver_ss58=miner.hotkey)
    assert both(Authenticator(miner.hotkey, allowed=None, proxies=False), headers) is Reason.BAD_MESSAGE
    assert CRYPTO_SR25519 != CRYPTO_ED25519


names = st.sampled_from(["Version", "Hotkey", "Receiver", "Nonce", "Crypto", "Signature"]).map("X-Bittensor-{}".format)


@given(st.dictionaries(names | st.text(max_size=20), st.text(max_size=80)), st.text(max_size=8), st.text(max_size=40))
def test_arbitrary_headers_are_refused_and_nothing_else(miner, headers, method, path):
    authenticator = Authenticator(miner.hotkey, allowed=None, proxies=False)
    assert isinstance(both(authenticator, headers, method=method, path=path), Reason)


def test_nonces_are_forgotten_after_their_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    nonces = Nonces(retention=10.0)
    nonces.record("a", 1)
    assert nonces.seen("a", 1)
    assert not nonces.seen("b", 1)
    now[0] += 10.0
    assert not nonces.seen("a", 1)
