"""How tensors become bytes and come back: small registered objects with a stated error bound."""

from fedgpt2.codec.base import Codec, Payload
from fedgpt2.codec.dense import Dense
from fedgpt2.codec.registry import CODECS, get

__all__ = ["CODECS", "Codec", "Dense", "Payload", "get"]
