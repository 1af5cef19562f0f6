"""The codecs by the names that orders and settings use; a new one is a file and a `register` line."""

from fedgpt2.codec.base import Codec
from fedgpt2.codec.dense import Dense
from fedgpt2.errors import Reason, Refused
from fedgpt2.registry import Registry

__all__ = ["CODECS", "get"]

CODECS: Registry[Codec] = Registry("codec")
CODECS.register("fp32", Dense("fp32", "F32", relative_error=0.0))
CODECS.register("bf16", Dense("bf16", "BF16", relative_error=2.0**-8))


def get(name: str) -> Codec:
    """The codec called `name`. Raises Refused(unsupported_codec)."""
    if name not in CODECS.names:
        raise Refused(Reason.UNSUPPORTED_CODEC, f"codec {name[:40]!r}; known here: {', '.join(CODECS.names)}")
    return CODECS[name]
