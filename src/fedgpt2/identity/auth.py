"""Who may call: btauth/1 on incoming requests, everything that headers can decide decided before a body is read.

btauth/1 signs method, request target, SHA-256 of the body, a nanosecond time stamp that is also the nonce, sender and
receiver (bittensor.http_auth). A request is good for `max_age` seconds, once, at the receiver it names.
"""

import re
import time
from collections import deque
from collections.abc import Mapping

from fedgpt2.errors import Reason, Refused
from fedgpt2.identity.keys import is_hotkey
from fedgpt2.types import Hotkey

__all__ = ["Gate", "Nonces"]

_VERSION, _SENDER, _RECEIVER = "x-bittensor-version", "x-bittensor-hotkey", "x-bittensor-receiver"
_NONCE, _SCHEME, _SIGNATURE = "x-bittensor-nonce", "x-bittensor-crypto", "x-bittensor-signature"
_NONCE_SHAPE = re.compile(r"[0-9]{1,20}", re.ASCII)
_SIGNATURE_SHAPE = re.compile(r"0x[0-9a-f]{128}")
_SKEW = 2.0  # seconds a caller's clock may run ahead
_MARGIN = 60.0  # seconds between the headers and the end of a body, within which its nonce must be remembered


class Nonces:
    """The requests already accepted, as bittensor's NonceStore wants them, and a look that records nothing.

    Only requests whose signature verified are stored, so a stranger cannot fill or poison it.
    """

    def __init__(self, retention: float) -> None:
        self.retention = retention
        self._seen: set[tuple[str, int]] = set()
        self._expiry: deque[tuple[float, tuple[str, int]]] = deque()

    def seen(self, hotkey: str, nonce: int) -> bool:
        """Whether this pair was accepted within the retention time."""
        self._forget()
        return (hotkey, nonce) in self._seen

    def check_and_store(self, hotkey_ss58: str, nonce_ns: int) -> bool:
        """Record the pair; False if it was there already."""
        if self.seen(hotkey_ss58, nonce_ns):
            return False
        self._seen.add((hotkey_ss58, nonce_ns))
        self._expiry.append((time.monotonic() + self.retention, (hotkey_ss58, nonce_ns)))
        return True

    def _forget(self) -> None:
        now = time.monotonic()
        while self._expiry and self._expiry[0][0] <= now:
            self._seen.discard(self._expiry.popleft()[1])


class Gate:
    """Lets requests through to one hotkey, or refuses them with the reason."""

    def __init__(self, hotkey: Hotkey, *, allowed: frozenset[str] | None, proxies: bool, max_age: float = 10.0) -> None:
        """`allowed` None lets any caller in; `proxies` accepts requests that passed one; `max_age` in seconds."""
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

    def precheck(self, headers: Mapping[str, str], method: str, path: str) -> Hotkey:
        """The claimed caller, if nothing in the headers speaks against it; the signature is not checked yet.

        Raises Refused: forwarded, bad_message (shape), wrong_receiver, unknown_caller, stale_request, replay.
        `method` and `path` (request target with query) are checked for shape only.
        """
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
        return Hotkey(sender)

    def verify(self, headers: Mapping[str, str], body: bytes, method: str, path: str) -> Hotkey:
        """The caller, proven. Raises Refused as `precheck` does, and with bad_signature."""
        from bittensor import http_auth

        sender = self.precheck(headers, method, path)
        try:
            http_auth.verify(
                headers,
                body,
                method=method,
                path=path,
                self_hotkey_ss58=self._hotkey,
                max_age=self._max_age,
                allowed_skew=_SKEW,
                nonce_store=self._nonces,
            )
        except http_auth.AuthError as error:
            raise Refused(_reason(error), str(error)) from error
        return sender

    def _check_fresh(self, nonce: int) -> None:
        age = (time.time_ns() - nonce) / 1e9
        if not -_SKEW <= age <= self._max_age:
            raise Refused(Reason.STALE_REQUEST, f"request is {age:.1f} s old; check both clocks")


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


def _reason(error: Exception) -> Reason:
    from bittensor import http_auth

    reasons: dict[type[Exception], Reason] = {
        http_auth.WrongReceiver: Reason.WRONG_RECEIVER,
        http_auth.StaleRequest: Reason.STALE_REQUEST,
        http_auth.ReplayedRequest: Reason.REPLAY,
        http_auth.BadSignature: Reason.BAD_SIGNATURE,
    }
    return reasons.get(type(error), Reason.BAD_MESSAGE)
