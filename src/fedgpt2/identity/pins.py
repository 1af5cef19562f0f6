"""Whose key is trusted: the rules of first contact, pins and duplicates. Pure: records are kept by the caller."""

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fedgpt2.errors import Reason, Refused, UsageError
from fedgpt2.types import Hotkey

__all__ = ["Change", "KeyBook", "is_loopback", "require_pins", "require_validators"]


@dataclass(frozen=True)
class Change:
    """A key to put on record for an axon: its first (`old` None) or another than before."""

    address: str
    old: Hotkey | None
    new: Hotkey


class Pinnable(Protocol):
    """An axon's address as far as pinning goes."""

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""

    @property
    def hotkey(self) -> Hotkey | None:
        """The pinned hotkey, if any."""


class KeyBook:
    """Which hotkey each axon showed, and which axon each hotkey belongs to.

    The first key an axon shows is its key. Another one is refused until the address pins it (`HOTKEY@host:port`) or
    `accept_new` is given. One hotkey is one miner: an axon that shows a hotkey already present elsewhere is refused.
    """

    def __init__(self, recorded: Mapping[str, Hotkey], reserved: Mapping[Hotkey, str] | None = None) -> None:
        """`recorded`: address -> key of earlier runs; `reserved`: pinned hotkey -> its address, whoever comes first."""
        self._recorded = dict(recorded)
        self._reserved = dict(reserved or {})
        self._present: dict[Hotkey, str] = {}

    def check(self, address: str, pinned: Hotkey | None, shown: Hotkey, accept_new: bool) -> Change | None:
        """What to put on record after `address` proved the key `shown`; None if nothing changes.

        Raises Refused(key_changed) or Refused(duplicate_hotkey).
        """
        old = self._recorded.get(address)
        expected = pinned or (None if accept_new else old)
        if expected is not None and shown != expected:
            way_out = "" if pinned else "; --axons.accept_new takes the new key on"
            raise Refused(
                Reason.KEY_CHANGED, f"shows {shown}, {'pinned' if pinned else 'recorded'}: {expected}{way_out}"
            )
        holder = self._reserved.get(shown) or self._present.get(shown, address)
        if holder != address:
            raise Refused(Reason.DUPLICATE_HOTKEY, f"{shown} is already at {holder}")
        self.release(address)
        self._present[shown] = address
        if shown == old:
            return None
        self._recorded[address] = shown
        return Change(address, old, shown)

    def release(self, address: str) -> None:
        """Forget which hotkey is present at `address`, so that its owner may appear elsewhere; records stay."""
        self._present = {hotkey: holder for hotkey, holder in self._present.items() if holder != address}


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine only: localhost, 127.0.0.0/8 or ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_pins(addresses: Iterable[Pinnable]) -> None:
    """Raises UsageError if an axon off loopback is given without its hotkey."""
    for address in addresses:
        if not address.loopback and address.hotkey is None:
            raise UsageError(f"--axons {address}: off loopback the miner's key must be given, as HOTKEY@{address}")


def require_validators(host: str, validators: Collection[str]) -> None:
    """Raises UsageError if a miner would listen off loopback without naming the validators it works for."""
    if not is_loopback(host) and not validators:
        raise UsageError(f"--axon.host {host}: off loopback name the validators you work for with --axon.validators")
