"""Hotkeys as text, and the one place where a signature is checked."""

from fedgpt2.errors import UsageError
from fedgpt2.types import Hotkey

__all__ = ["SIGNATURE_BYTES", "is_hotkey", "parse_hotkey", "verify"]

SIGNATURE_BYTES = 64  # sr25519
_SS58_FORMAT = 42  # Bittensor's address format
_LONGEST = 64  # characters looked at: an address has 48, and decoding takes the square of the length


def is_hotkey(text: str) -> bool:
    """Whether `text` is an address in Bittensor's own ss58 format, checksum included.

    Only that format counts: the same key can be written in others, and one key must not pass for two identities.
    """
    from bittensor.sp_core import ss58_decode, ss58_encode

    if len(text) > _LONGEST:
        return False
    try:
        return bool(ss58_encode(ss58_decode(text), _SS58_FORMAT) == text)
    except ValueError:
        return False


def parse_hotkey(text: str) -> Hotkey:
    """The hotkey written in `text`. Raises UsageError if it is none."""
    if not is_hotkey(text):
        raise UsageError(f"{text[:64]!r} is not a hotkey (an ss58 address such as 5DtDLm5rQHSh…)")
    return Hotkey(text)


def verify(hotkey: str, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (sr25519, 64 bytes) over `message` is by `hotkey`; False as well for a malformed key."""
    from bittensor.sp_core import CRYPTO_SR25519
    from bittensor.sp_core import verify as verify_signature

    if len(signature) != SIGNATURE_BYTES or not is_hotkey(hotkey):
        return False
    return bool(verify_signature(message, signature, hotkey, CRYPTO_SR25519))
