"""Hotkeys: one spelling each, and signatures that verify or do not, without an exception."""

import pytest
from bittensor.sp_core import ss58_decode, ss58_encode
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import UsageError
from fedgpt2.identity.keys import is_hotkey, parse_hotkey, verify


def test_an_address_is_a_hotkey(miner):
    assert is_hotkey(miner.hotkey)
    assert parse_hotkey(miner.hotkey) == miner.hotkey


@pytest.mark.parametrize("ss58_format", [0, 2, 41, 43])
def test_the_same_key_in_another_format_is_not(miner, ss58_format):
    assert not is_hotkey(ss58_encode(ss58_decode(miner.hotkey), ss58_format))


def test_a_typing_error_is_noticed(miner):
    wrong = miner.hotkey[:-1] + ("a" if miner.hotkey[-1] != "a" else "b")
    with pytest.raises(UsageError, match="not a hotkey"):
        parse_hotkey(wrong)


def test_what_is_too_long_for_a_hotkey_is_not_decoded(monkeypatch):
    """Decoding 8 KB, which a header may have, takes tens of milliseconds: a stranger could stop a miner by it."""
    monkeypatch.setattr("bittensor.sp_core.ss58_decode", lambda text: pytest.fail(f"decodes {len(text)} characters"))
    assert not is_hotkey("1" * 65)


@given(st.text(max_size=60))
def test_arbitrary_text_is_no_hotkey(text):
    assert not is_hotkey(text)


@given(st.text(max_size=60), st.binary(max_size=80), st.binary(max_size=80))
def test_arbitrary_signatures_do_not_verify(hotkey, message, signature):
    assert not verify(hotkey, message, signature)


@given(st.binary(max_size=80), st.binary(min_size=64, max_size=64))
def test_arbitrary_signatures_of_a_real_key_do_not_verify(miner, message, signature):
    assert not verify(miner.hotkey, message, signature)
    assert not verify(miner.hotkey, message, signature[:63])
