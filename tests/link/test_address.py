"""Addresses: what --axons takes, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import UsageError
from fedgpt2.link.address import Address, parse

KEY = "5DtDLm5rQHShDqojQpsvcN8tRXHVFaecfDoRet1SU6BFD9Fi"


@pytest.mark.parametrize(
    ("text", "address", "written", "loopback"),
    [
        ("8091", Address("127.0.0.1", 8091), "127.0.0.1:8091", True),
        ("localhost:1", Address("localhost", 1), "localhost:1", True),
        ("gpu-3.example.org:65535", Address("gpu-3.example.org", 65535), "gpu-3.example.org:65535", False),
        ("[::1]:8091", Address("::1", 8091), "[::1]:8091", True),
        ("[fe80::1%eth0]:8091", Address("fe80::1%eth0", 8091), "[fe80::1%eth0]:8091", False),
        (f"{KEY}@10.0.0.1:8091", Address("10.0.0.1", 8091, KEY), "10.0.0.1:8091", False),
        (f"{KEY}@8091", Address("127.0.0.1", 8091, KEY), "127.0.0.1:8091", True),
    ],
)
def test_addresses_are_read_and_written(text, address, written, loopback):
    parsed = parse(text)
    assert parsed == address
    assert str(parsed) == written
    assert parsed.url == f"http://{written}"
    assert parsed.loopback is loopback
    assert parse(str(parsed)) == Address(address.host, address.port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "9" * 5000,
        "host",
        "host:",
        ":1",
        "host:x",
        "host:٣",
        "a b:1",
        "::1:1",
        "[::1]",
        "[x]:1",
        "k@1",
    ],
)
def test_what_is_no_address_is_a_usage_error(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_arbitrary_text_is_an_address_or_a_usage_error(text):
    try:
        address = parse(text)
    except UsageError:
        return
    assert parse(str(address)) == address
