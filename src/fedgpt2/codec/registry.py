"""The codecs by the names that orders and settings use."""

from collections.abc import Mapping
from types import MappingProxyType

from fedgpt2.codec.dense import Codec
from fedgpt2.errors import Reason, Refused

__all__ = ["NAMES", "get"]

_CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec("fp32", "F32", relative_error=0.0),
            Codec("bf16", "BF16", relative_error=2.0**-8),
        )
    }
)
NAMES: tuple[str, ...] = tuple(_CODECS)


def get(name: str) -> Codec:
    """The codec called `name`. Raises Refused(unsupported_codec)."""
    if name not in _CODECS:
        raise Refused(Reason.UNSUPPORTED_CODEC, f"codec {name[:40]!r}; known here: {', '.join(NAMES)}")
    return _CODECS[name]
