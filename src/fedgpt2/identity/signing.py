"""Signing messages and requests with a hotkey, and opening signed messages."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, get_args

from fedgpt2.errors import Culprit, ProtocolError, Reason, Refused, blamed_on
from fedgpt2.identity.auth import content_digest
from fedgpt2.identity.keys import verify
from fedgpt2.protocol.messages import Envelope, Kind, Message, decode, encode, signed_bytes
from fedgpt2.types import Hotkey

if TYPE_CHECKING:
    from bittensor.sp_core import Keypair

__all__ = ["Signer", "Verify", "open_envelope"]

Verify = Callable[[str, bytes, bytes], bool]  # hotkey, message, signature -> whether the hotkey signed the message
M = TypeVar("M", bound=Message)

# Who writes a message of each kind, and so who is to blame if it is not one.
_AUTHOR = {
    "info": Culprit.MINER,
    "contribution": Culprit.MINER,
    "failure": Culprit.MINER,
    "order": Culprit.VALIDATOR,
    "receipt": Culprit.VALIDATOR,
}


class Signer:
    """A hotkey that signs messages (envelopes) and HTTP requests (btauth/1)."""

    def __init__(self, keypair: "Keypair") -> None:
        self._keypair = keypair
        self.hotkey = Hotkey(keypair.ss58_address)

    def seal(self, kind: Kind, message: Message) -> Envelope:
        """`message` in a signed envelope. Raises ValueError for an unknown kind (a mistake of ours)."""
        if kind not in get_args(Kind):
            raise ValueError(f"no messages of kind {kind!r}")
        payload = encode(message).decode()
        signature = bytes(self._keypair.sign(signed_bytes(kind, payload)))
        return Envelope(kind=kind, payload=payload, signer=self.hotkey, signature=signature.hex())

    def headers(self, method: str, path: str, body: bytes = b"", *, receiver: Hotkey) -> dict[str, str]:
        """btauth/1 headers with a fresh nonce, and the digest of a body that is not empty.

        `path` is the request target as sent, query included.
        """
        from bittensor import http_auth

        headers = http_auth.sign(self._keypair, method=method, path=path, body=body, receiver_ss58=receiver)
        return {**headers, "Content-Digest": content_digest(body)} if body else headers


def open_envelope(envelope: Envelope, kind: Kind, type_: type[M], *, signer: str | None, verify: Verify = verify) -> M:
    """The message inside, once its kind, signer and signature are right; `signer` None accepts any.

    `verify` checks the signature; a simulation, whose miners have no keys, leaves that out.

    Raises Refused(bad_signature) for another signer, a signature that does not verify, or a message that names
    another sender than its signer; ProtocolError for another kind and for a payload that is not a `type_`. Blame
    falls on the side that writes messages of this kind.
    """
    author = _AUTHOR[kind]
    if envelope.kind != kind:
        raise ProtocolError(f"envelope of kind {envelope.kind}, not {kind}", culprit=author)
    if signer is not None and envelope.signer != signer:
        raise Refused(Reason.BAD_SIGNATURE, f"{kind} signed by {envelope.signer[:64]}, not {signer}", author)
    if not verify(envelope.signer, envelope.signed_bytes(), bytes.fromhex(envelope.signature)):
        raise Refused(Reason.BAD_SIGNATURE, f"signature of the {kind} does not verify", author)
    with blamed_on(author):
        message = decode(envelope.payload, type_)
    sender = getattr(message, "hotkey" if kind == "info" else "sender", None)
    if sender != envelope.signer:
        raise Refused(Reason.BAD_SIGNATURE, f"{kind} of {str(sender)[:64]} signed by {envelope.signer}", author)
    return message
