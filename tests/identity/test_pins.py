"""Whose key is trusted: first contact, pins, changes, duplicates, and the refusal to start without pins."""

from dataclasses import dataclass

import pytest

from fedgpt2.errors import Reason, Refused, UsageError
from fedgpt2.identity.pins import Change, KeyBook, is_loopback, require_pins, require_validators

A, B = "127.0.0.1:8091", "127.0.0.1:8092"


@dataclass(frozen=True)
class Axon:
    loopback: bool
    hotkey: str | None = None

    def __str__(self) -> str:
        return "there:8091"


def reason(book, *args) -> Reason:
    with pytest.raises(Refused) as caught:
        book.check(*args)
    return caught.value.reason


def test_the_first_key_is_recorded_and_then_expected():
    book = KeyBook({})
    assert book.check(A, None, "k1", False) == Change(A, None, "k1")
    assert book.check(A, None, "k1", False) is None
    assert reason(book, A, None, "k2", False) is Reason.KEY_CHANGED


def test_a_record_of_an_earlier_run_counts():
    book = KeyBook({A: "k1"})
    assert reason(book, A, None, "k2", False) is Reason.KEY_CHANGED
    assert book.check(A, None, "k1", False) is None


def test_another_key_is_accepted_when_asked_to():
    book = KeyBook({A: "k1"})
    assert book.check(A, None, "k2", True) == Change(A, "k1", "k2")
    assert reason(book, A, None, "k1", False) is Reason.KEY_CHANGED


def test_a_pin_beats_the_record_and_accept_new():
    book = KeyBook({A: "k1"})
    assert reason(book, A, "k2", "k1", True) is Reason.KEY_CHANGED
    assert book.check(A, "k2", "k2", False) == Change(A, "k1", "k2")


def test_two_axons_with_one_hotkey_are_one_miner():
    book = KeyBook({})
    book.check(A, None, "k1", False)
    assert reason(book, B, None, "k1", False) is Reason.DUPLICATE_HOTKEY
    assert book.check(B, None, "k2", False) == Change(B, None, "k2")  # the refusal left no record


def test_a_miner_may_move_once_its_old_axon_is_gone():
    book = KeyBook({A: "k1"})
    book.check(A, None, "k1", False)
    book.release(A)
    assert book.check(B, None, "k1", False) == Change(B, None, "k1")
    assert reason(book, A, None, "k1", False) is Reason.DUPLICATE_HOTKEY


def test_a_key_given_up_may_appear_elsewhere():
    book = KeyBook({})
    book.check(A, None, "k1", False)
    book.check(A, None, "k2", True)
    assert book.check(B, None, "k1", False) == Change(B, None, "k1")


def test_a_pinned_hotkey_is_reserved_for_its_address():
    book = KeyBook({}, reserved={"k1": B})
    assert reason(book, A, None, "k1", False) is Reason.DUPLICATE_HOTKEY
    assert book.check(B, "k1", "k1", False) == Change(B, None, "k1")
    book.release(B)
    assert reason(book, A, None, "k1", False) is Reason.DUPLICATE_HOTKEY


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_loopback_hosts(host):
    assert is_loopback(host)
    require_validators(host, ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example.org", "127.1.1"])
def test_all_other_hosts_need_validators(host):
    assert not is_loopback(host)
    with pytest.raises(UsageError, match=r"--axon\.validators"):
        require_validators(host, ())
    require_validators(host, ("k1",))


def test_axons_off_loopback_need_pins():
    require_pins([Axon(loopback=True), Axon(loopback=False, hotkey="k1")])
    with pytest.raises(UsageError, match="HOTKEY@there:8091"):
        require_pins([Axon(loopback=True), Axon(loopback=False)])
