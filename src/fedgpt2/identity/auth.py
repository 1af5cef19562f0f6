"""Who may call: btauth/1 on incoming requests; whatever headers can decide is decided before a body is read.

btauth/1 (bittensor.http_auth) signs method, request target, SHA-256 of the body, a nanosecond time stamp that is also
the nonce, sender and receiver. A request is good for `max_age` seconds, once, at the receiver it names. A sender that
announces the SHA-256 of its body (Content-Digest, RFC 9530) is verified before the body is read, too.
"""

import base64
import hashlib
import re
import time
from collections import deque
from collections.abc import Mapping

from fedgpt2.errors import Reason, Refused
from fedgpt2.identity.keys import is_hotkey, verify
from fedgpt2.types import Hotkey

__all__ = ["Authenticator", "Nonces", "announced_digest", "content_digest"]

_VERSION, _SENDER, _RECEIVER = "x-bittensor-version", "x-bittensor-hotkey", "x-bittensor-receiver"
_NONCE, _SCHEME, _SIGNATURE = "x-bittensor-nonce", "x-bittensor-crypto", "x-bittensor-signature"
_NONCE_SHAPE = re.compile(r"[0-9]{1,20}", re.ASCII)
_SIGNATURE_SHAPE = re.compile(r"0x[0-9a-f]{128}")
_DIGEST_SHAPE = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
_SKEW = 2.0  # seconds a caller's clock may run ahead
_MARGIN = 60.0  # seconds between the headers and the end of a body, within which its nonce must be remembered


class Nonces:
    """The requests accepted within the retention time; only requests whose signature verified are recorded."""

    def __init__(self, retention: float) -> None:
        self._retention = retention
        self._seen: set[tuple[str, int]] = set()
        self._expiry: deque[tuple[float, tuple[str, int]]] = deque()

    def seen(self, hotkey: str, nonce: int) -> bool:
        """Whether this pair was accepted within the retention time."""
        now = time.monotonic()
        while self._expiry and self._expiry[0][0] <= now:
            self._seen.discard(self._expiry.popleft()[1])
        return (hotkey, nonce) in self._seen

    def record(self, hotkey: str, nonce: int) -> None:
        """Record a pair that was accepted."""
        self._seen.add((hotkey, nonce))
        self._expiry.append((time.monotonic() + self._retention, (hotkey, nonce)))


class Authenticator:
    """Accepts signed requests to one hotkey, or refuses them with the reason."""

    def __init__(self, hotkey: Hotkey, *, allowed: frozenset[str] | None, proxies: bool, max_age: float = 10.0) -> None:
        """`allowed` None accepts any caller; `proxies` accepts requests that passed one; `max_age` in seconds."""
        self._hotkey = hotkey
        self._allowed = allowed
        self._proxies = proxies
        self._max_age = max_age
        self._nonces = Nonces(max_age + _SKEW + _MARGIN)

    def check_forwarded(self, headers: Mapping[str, str]) -> None:
        """Raises Refused(forwarded) for a request that came through a proxy, unless proxies are declared."""
        if self._proxies:
            return
        for name in headers:
            if name.lower() in {"forwarded", "via"} or name.lower().startswith("x-forwarded-"):
                raise Refused(Reason.FORWARDED, f"request with a {name[:40]} header; this axon declares no proxy")

    def check_headers(self, headers: Mapping[str, str], method: str, path: str) -> Hotkey:
        """The claimed caller, if the headers are in order; the signature is not checked.

        Raises Refused: forwarded, bad_message (shape), wrong_receiver, unknown_caller, stale_request, replay.
        `method` and `path` (request target with query) are checked for shape only.
        """
        return Hotkey(self._fields(headers, method, path)[_SENDER])

    def verify(self, headers: Mapping[str, str], body_digest: str, method: str, path: str) -> Hotkey:
        """The caller, authenticated; `body_digest` is the SHA-256 of the body that it must have signed, as hex.

        The request is accepted with this: the same headers are a replay from now on. Raises Refused as `check_headers`
        does, and with bad_signature.
        """
        fields = self._fields(headers, method, path)
        sender, nonce = fields[_SENDER], fields[_NONCE]
        signed = ("btauth/1", "sr25519", method.upper(), path, body_digest, str(int(nonce)), sender, self._hotkey)
        if not verify(sender, "\n".join(signed).encode(), bytes.fromhex(fields[_SIGNATURE].removeprefix("0x"))):
            raise Refused(Reason.BAD_SIGNATURE, f"signature does not verify against {sender}")
        self._nonces.record(sender, int(nonce))
        return Hotkey(sender)

    def _fields(self, headers: Mapping[str, str], method: str, path: str) -> Mapping[str, str]:
        self.check_forwarded(headers)
        if not (path.isascii() and method.isascii()):
            raise Refused(Reason.BAD_MESSAGE, "request target is not ASCII")
        fields = _auth_fields(headers)
        if fields.get(_RECEIVER) != self._hotkey:
            raise Refused(Reason.WRONG_RECEIVER, f"request is for {fields.get(_RECEIVER, 'nobody')[:64]}")
        sender, nonce = fields[_SENDER], int(fields[_NONCE])
        if self._allowed is not None and sender not in self._allowed:
            raise Refused(Reason.UNKNOWN_CALLER, f"{sender} is not among the callers of this axon")
        self._check_fresh(nonce)
        if self._nonces.seen(sender, nonce):
            raise Refused(Reason.REPLAY, "request was accepted before")
        return fields

    def _check_fresh(self, nonce: int) -> None:
        age = (time.time_ns() - nonce) / 1e9
        if not -_SKEW <= age <= self._max_age:
            raise Refused(Reason.STALE_REQUEST, f"request is {age:.1f} s old; check both clocks")


def content_digest(body: bytes) -> str:
    """Value of the Content-Digest header for a body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def announced_digest(headers: Mapping[str, str]) -> str | None:
    """SHA-256 of the body as hex, where a Content-Digest header announces it; None where none does."""
    values = [value for name, value in headers.items() if name.lower() == "content-digest"]
    found = _DIGEST_SHAPE.fullmatch(values[0]) if len(values) == 1 else None
    return base64.b64decode(found[1]).hex() if found else None


def _auth_fields(headers: Mapping[str, str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        if key in fields:
            raise Refused(Reason.BAD_MESSAGE, f"{key} more than once")
        if key.startswith("x-bittensor-"):
            fields[key] = value
    shapes = {
        _VERSION: fields.get(_VERSION) == "1",
        _SENDER: is_hotkey(fields.get(_SENDER, "")),
        _NONCE: _NONCE_SHAPE.fullmatch(fields.get(_NONCE, "")) is not None,
        _SCHEME: fields.get(_SCHEME, "sr25519") == "sr25519",
        _SIGNATURE: _SIGNATURE_SHAPE.fullmatch(fields.get(_SIGNATURE, "")) is not None,
    }
    bad = [name for name, good in shapes.items() if not good]
    if bad:
        raise Refused(Reason.BAD_MESSAGE, f"{bad[0]} is missing or malformed")
    return fields
