"""Where an axon is, and whose key it must show."""

import re
from dataclasses import dataclass

from fedgpt2.errors import UsageError
from fedgpt2.identity.keys import parse_hotkey
from fedgpt2.identity.pins import is_loopback
from fedgpt2.types import Hotkey

__all__ = ["Address", "parse"]

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_PORT = re.compile(r"[0-9]{1,5}")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?")


@dataclass(frozen=True)
class Address:
    """One axon: host (IPv6 without brackets), port, and the hotkey it is pinned to, if any."""

    host: str
    port: int
    hotkey: Hotkey | None = None

    @property
    def loopback(self) -> bool:
        """Whether the axon is on this machine."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        return f"http://{self}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(text: str) -> Address:
    """The address in `8091`, `host:8091`, `[::1]:8091` or `HOTKEY@host:8091`. Raises UsageError.

    A bare port is on this machine.
    """
    key, at, place = text.rpartition("@")
    host, colon, port = place.rpartition(":")
    if not colon:
        host = "127.0.0.1"
    elif host.startswith("[") and host.endswith("]") and _IPV6.fullmatch(host[1:-1]):
        host = host[1:-1]
    elif not _HOST.fullmatch(host):
        raise UsageError(f"--axons {text[:100]!r}: not PORT, HOST:PORT or HOTKEY@HOST:PORT")
    if not (_PORT.fullmatch(port) and 0 < int(port) < 1 << 16):
        raise UsageError(f"--axons {text[:100]!r}: no port between 1 and 65535")
    return Address(host, int(port), parse_hotkey(key) if at else None)
