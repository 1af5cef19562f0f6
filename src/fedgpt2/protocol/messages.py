"""The messages of the protocol, as immutable values, and their one canonical encoding.

Canonical JSON here means UTF-8, keys in ASCII order, no white space. A receiver never re-encodes: signatures and
`work_id` are taken over the payload's bytes as they arrived.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from fedgpt2.errors import LINE_LENGTH, Culprit, ProtocolError, Reason
from fedgpt2.types import ModelShape

__all__ = [
    "MANIFEST_CODEC",
    "PROTOCOL_VERSION",
    "STRATEGY",
    "Accepted",
    "Assignment",
    "BlobRef",
    "Caps",
    "Contribution",
    "Envelope",
    "Failure",
    "Info",
    "Lack",
    "Order",
    "Receipt",
    "RefusalBody",
    "WorkStatus",
    "decode",
    "encode",
]

PROTOCOL_VERSION = 1
STRATEGY = "mean_gradient"  # what an order asks for; how the miner computes it is its own affair
MANIFEST_CODEC = "json"  # such a blob has no header: its bytes are the document itself

# \Z, not $: that lets a line feed follow.
Hex64 = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
Natural = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Word = Annotated[str, Meta(min_length=1, max_length=128)]
Line = Annotated[str, Meta(max_length=LINE_LENGTH)]
Kind = Literal["info", "order", "contribution", "failure", "receipt"]


class Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all messages: immutable, strict about unknown fields."""


class BlobRef(Message, frozen=True, kw_only=True):
    """A blob by content: BLAKE3 of its bytes, its length, and how to read it."""

    digest: Hex64
    length: Natural
    codec: Word
    base: Hex64 | None = None  # digest of the model a delta is applied to; None for a full state


class Assignment(Message, frozen=True, kw_only=True):
    """The windows of text an order is about (docs/data.md gives the scheme)."""

    manifest: Hex64
    manifest_length: Natural
    slot: Natural
    pages: Annotated[tuple[Natural, ...], Meta(max_length=4096)]
    windows: Annotated[tuple[tuple[Natural, ...], ...], Meta(max_length=4096)]  # window numbers, a row a page


class Caps(Message, frozen=True, kw_only=True):
    """What the validator will accept as an answer."""

    answer_bytes: Natural


class Order(Message, frozen=True, kw_only=True):
    """A validator's request for one gradient over one state and one assignment."""

    v: int = PROTOCOL_VERSION
    run_id: Hex64
    round: Natural
    attempt: Natural
    sender: Word
    receiver: Word
    parent: Hex64  # digest of the model the gradient is asked for
    model: ModelShape
    state: Annotated[tuple[BlobRef, ...], Meta(min_length=1, max_length=16)]
    assignment: Assignment
    strategy: Word = STRATEGY
    answer_codecs: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=16)]
    caps: Caps
    budget_seconds: Annotated[float, Meta(gt=0)]

    @property
    def age(self) -> tuple[int, int]:
        """Orders of a run are older or newer by attempt, then round."""
        return self.attempt, self.round

    @property
    def n_windows(self) -> int:
        """Windows asked for."""
        return sum(len(row) for row in self.assignment.windows)


class Contribution(Message, frozen=True, kw_only=True):
    """A miner's answer: where its gradient lies, and what it says about it."""

    v: int = PROTOCOL_VERSION
    run_id: Hex64
    round: Natural
    work_id: Hex64
    parent: Hex64
    sender: Word
    receiver: Word
    blob: BlobRef
    claimed_loss: float
    tokens: Natural
    seconds: float


class Failure(Message, frozen=True, kw_only=True):
    """A miner's answer when there is none: a typed reason."""

    v: int = PROTOCOL_VERSION
    run_id: Hex64
    round: Natural
    work_id: Hex64
    sender: Word
    receiver: Word
    reason: Word
    detail: Line = ""


class Info(Message, frozen=True, kw_only=True):
    """Who answers at an axon and what it can do; signs the caller's challenge."""

    hotkey: Word
    versions: tuple[int, ...]
    package: Word
    state_codecs: tuple[Word, ...]
    gradient_codecs: tuple[Word, ...]
    strategies: tuple[Word, ...]
    message_bytes: Natural
    challenge: Hex64


Pair = Annotated[tuple[Natural, ...], Meta(min_length=2, max_length=2)]


class Ranked(Message, frozen=True, kw_only=True):
    """What a round did to a miner's rating, and why: the score with its parts, the rating before and after."""

    verdict: Word  # own | copy | replay | fault | excused | unheard
    keeper: Word | None = None  # of a copy: the hotkey that committed to the gradient first
    score: float | None = None
    raw: float | None = None
    added: float | None = None
    own: float | None = None
    proven: float | None = None
    grounded: float | None = None
    place: Natural | None = None
    compared: Natural = 0
    rating_before: float
    sigma_before: float
    rating_after: float
    sigma_after: float
    reliability: float
    share: float
    trusted: float = 1.0
    weight: float


class Receipt(Message, frozen=True, kw_only=True):
    """What became of a miner's share of a round, signed by the validator."""

    v: int = PROTOCOL_VERSION
    run_id: Hex64
    round: Natural
    sender: Word
    receiver: Word
    work_id: Hex64
    status: Word  # admitted | refused | failed
    reason: Word | None = None
    culprit: Culprit | None = None
    detail: Line = ""
    tokens: Natural = 0
    norm: float | None = None
    weight: float = 0.0
    score: float | None = None
    rating: float | None = None
    ranking: Ranked | None = None
    windows: tuple[Pair, ...] = ()  # page and place in it of each scoring window, in the score pool
    applied: bool
    model: Hex64  # digest of the weights after the round
    ledger_head: Hex64


class Envelope(Message, frozen=True, kw_only=True):
    """A signed message. The signature covers `fedgpt2/1/<kind>`, a newline, and the payload's UTF-8 bytes."""

    kind: Kind
    payload: str
    signer: Word
    signature: Annotated[str, Meta(pattern="^[0-9a-f]{128}\\Z")]

    def signed_bytes(self) -> bytes:
        """The bytes under the signature."""
        return signed_bytes(self.kind, self.payload)


class Lack(Message, frozen=True, kw_only=True):
    """A blob the miner does not hold whole, and how many of its bytes it holds."""

    digest: Hex64
    have: Natural


class Accepted(Message, frozen=True, kw_only=True):
    """Answer to an order that was taken on."""

    work_id: Hex64
    lacks: tuple[Lack, ...]


class WorkStatus(Message, frozen=True, kw_only=True):
    """Answer to a long poll: pending, or done with the signed contribution or failure."""

    state: Literal["pending", "done"]
    answer: Envelope | None = None


class RefusalBody(Message, frozen=True, kw_only=True):
    """Body of every 4xx answer."""

    reason: Word
    detail: Line = ""


M = TypeVar("M", bound=Message)

_encoder = msgspec.json.Encoder(order="sorted")


def encode(message: Message) -> bytes:
    """Canonical JSON of a message."""
    return _encoder.encode(message)


def decode(data: bytes | str, kind: type[M]) -> M:
    """The message in `data`. Raises ProtocolError(bad_message | unsupported_version) and nothing else."""
    try:
        message = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"not a {kind.__name__.lower()}: {str(error)[:200]}") from error
    version = getattr(message, "v", PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"protocol version {version}, not {PROTOCOL_VERSION}", Reason.UNSUPPORTED_VERSION)
    return message


def signed_bytes(kind: str, payload: str) -> bytes:
    """The bytes a signature covers: a domain line, so that no message can pass for one of another kind."""
    return f"fedgpt2/{PROTOCOL_VERSION}/{kind}\n".encode() + payload.encode()
