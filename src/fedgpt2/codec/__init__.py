"""How tensors become bytes and come back: small registered objects with a stated error bound."""

from fedgpt2.codec.dense import Codec
from fedgpt2.codec.registry import NAMES, get

__all__ = ["NAMES", "Codec", "get"]
