"""HTTP status of each refusal: enough for a proxy or a log; the reason in the body is what counts."""

from fedgpt2.errors import Reason

__all__ = ["http_status"]

_STATUS = {
    Reason.BAD_SIGNATURE: 401,
    Reason.REPLAY: 401,
    Reason.STALE_REQUEST: 401,
    Reason.WRONG_RECEIVER: 401,
    Reason.UNKNOWN_CALLER: 403,
    Reason.FORWARDED: 403,
    Reason.UNKNOWN_BLOB: 404,
    Reason.UNKNOWN_WORK: 404,
    Reason.STALE_ORDER: 409,
    Reason.BUSY: 409,
    Reason.WRONG_LENGTH: 411,
    Reason.TOO_LARGE: 413,
    Reason.DIGEST_MISMATCH: 422,
}


def http_status(reason: Reason) -> int:
    """Status code of a refusal; 400 where the table names none."""
    return _STATUS.get(reason, 400)
