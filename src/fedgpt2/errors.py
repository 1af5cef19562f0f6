"""Every failure this package raises, and whose fault it is.

    FedGPT2Error                      one clear line, exit code 1
    ├── UsageError                    bad flag, missing wallet: exit code 2
    ├── SetupError                    this machine cannot start the run
    │   ├── DeviceError               no such device
    │   ├── PortInUseError            the port is taken
    │   ├── CorpusError               the text cannot be reached or read
    │   │   └── EmptyShareError       a slot's pages of a round hold no windows
    │   ├── RunDirectoryError         the run directory belongs to another run or is damaged
    │   │   └── CheckpointError       a checkpoint is missing, corrupt or of another model
    │   ├── DiskFullError             a write failed for want of space
    │   └── NoMinersError             no miner answered in time
    └── PeerError                     something between two machines; carries a Reason and so a culprit
        ├── ProtocolError             bytes that are not a message
        ├── Refused                   a well-formed message that is not accepted
        └── NetworkError              unreachable, timed out, cut off

A `Reason` is a word of the wire protocol (docs/protocol.md lists them all); each has one culprit,
because the culprit decides what a failure costs whom: only MINER faults ever count against a miner.

What a PeerError says often quotes the peer, and goes from there into rows, receipts and terminals: it is `printable`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

__all__ = [
    "LINE_LENGTH",
    "CheckpointError",
    "CorpusError",
    "Culprit",
    "DeviceError",
    "DiskFullError",
    "EmptyShareError",
    "FedGPT2Error",
    "NetworkError",
    "NoMinersError",
    "PeerError",
    "PortInUseError",
    "ProtocolError",
    "Reason",
    "Refused",
    "RunDirectoryError",
    "SetupError",
    "UsageError",
    "blamed_on",
    "printable",
]

LINE_LENGTH = 500  # characters of a `line` of the protocol


class Culprit(StrEnum):
    """Whose fault a failure is."""

    MINER = "MINER"
    VALIDATOR = "VALIDATOR"
    NETWORK = "NETWORK"


class Reason(StrEnum):
    """Why something was refused or failed; the stable vocabulary of wire, ledger and receipts."""

    # the caller of a request
    BAD_MESSAGE = "bad_message"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_CALLER = "unknown_caller"
    WRONG_RECEIVER = "wrong_receiver"
    REPLAY = "replay"
    STALE_REQUEST = "stale_request"
    FORWARDED = "forwarded"
    # an order, seen by the miner
    STALE_ORDER = "stale_order"
    BUSY = "busy"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNSUPPORTED_STRATEGY = "unsupported_strategy"
    UNSUPPORTED_CODEC = "unsupported_codec"
    UNSUPPORTED_MODEL = "unsupported_model"
    WRONG_MANIFEST = "wrong_manifest"
    WRONG_ASSIGNMENT = "wrong_assignment"
    WRONG_STATE = "wrong_state"
    UNKNOWN_WORK = "unknown_work"
    CANCELLED = "cancelled"
    DATA_UNAVAILABLE = "data_unavailable"
    COMPUTE_FAILED = "compute_failed"
    # a blob
    UNKNOWN_BLOB = "unknown_blob"
    WRONG_LENGTH = "wrong_length"
    TOO_LARGE = "too_large"
    DIGEST_MISMATCH = "digest_mismatch"
    # a contribution, seen by the validator
    KEY_CHANGED = "key_changed"
    DUPLICATE_HOTKEY = "duplicate_hotkey"
    WRONG_ORDER = "wrong_order"
    WRONG_PARENT = "wrong_parent"
    WRONG_NAMES = "wrong_names"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    NON_FINITE = "non_finite"
    NORM_BOUND = "norm_bound"
    DUPLICATE = "duplicate"
    LATE = "late"
    # the link
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    CUT_OFF = "cut_off"

    @property
    def culprit(self) -> Culprit:
        """Whose fault this is when a validator records it about a miner's share of a round."""
        return _CULPRITS.get(self, Culprit.MINER)


_CULPRITS = {
    # The validator wrote the request, the order and the state: a miner that refuses them is right to.
    **dict.fromkeys(
        (
            Reason.BAD_MESSAGE,
            Reason.UNKNOWN_CALLER,
            Reason.WRONG_RECEIVER,
            Reason.REPLAY,
            Reason.STALE_REQUEST,
            Reason.STALE_ORDER,
            Reason.UNSUPPORTED_VERSION,
            Reason.WRONG_ASSIGNMENT,
            Reason.WRONG_STATE,
            Reason.CANCELLED,
        ),
        Culprit.VALIDATOR,
    ),
    **dict.fromkeys((Reason.FORWARDED, Reason.UNREACHABLE, Reason.TIMED_OUT, Reason.CUT_OFF), Culprit.NETWORK),
}


class FedGPT2Error(Exception):
    """Base of every failure; its text is the one line a person reads."""

    exit_code = 1


class UsageError(FedGPT2Error):
    """The command line, a setting or a wallet is not usable as given."""

    exit_code = 2


class SetupError(FedGPT2Error):
    """This machine cannot start or go on with the run."""


class DeviceError(SetupError):
    """The device asked for does not exist here."""


class PortInUseError(SetupError):
    """Another program listens on the port."""


class CorpusError(SetupError):
    """Text or tokeniser data cannot be reached, read or trusted."""


class EmptyShareError(CorpusError):
    """The pages that a slot is given in a round hold no windows."""


class RunDirectoryError(SetupError):
    """The run directory belongs to another run, or is damaged."""


class CheckpointError(RunDirectoryError):
    """A checkpoint is missing, corrupt, or of another model."""


class DiskFullError(SetupError):
    """A write failed for want of space; what was committed before is intact."""


class NoMinersError(SetupError):
    """No miner answered in the time allowed."""


class PeerError(FedGPT2Error):
    """A failure between two machines, with the reason that decides whose fault it is."""

    def __init__(self, reason: Reason, detail: str = "", culprit: Culprit | None = None) -> None:
        """`detail` may quote a peer: what is kept of it is `printable`."""
        self.reason = reason
        self.detail = printable(detail)
        super().__init__(f"{reason.value}: {self.detail}" if self.detail else reason.value)
        self.culprit = culprit or reason.culprit


class ProtocolError(PeerError):
    """Bytes that are not a message of the protocol."""

    def __init__(self, detail: str, reason: Reason = Reason.BAD_MESSAGE, culprit: Culprit | None = None) -> None:
        super().__init__(reason, detail, culprit)


@contextmanager
def blamed_on(culprit: Culprit) -> Iterator[None]:
    """Raise a ProtocolError of the block again with this culprit, whatever its reason usually means."""
    try:
        yield
    except ProtocolError as error:
        raise ProtocolError(error.detail, error.reason, culprit) from error


class Refused(PeerError):
    """A well-formed message that is not accepted."""


class NetworkError(PeerError):
    """The link failed: nobody's fault that counts."""


def printable(text: str) -> str:
    """A line that can be encoded, stored and shown, whoever wrote `text`: at most LINE_LENGTH characters.

    Lone surrogates (aiohttp and `json` let them in), control characters and what else shows as nothing become U+FFFD.
    """
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:LINE_LENGTH])
