"""The participants of a simulation and its random numbers, all derived from one seed."""

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from fedgpt2.identity.signing import Signer
from fedgpt2.types import Hotkey

__all__ = ["Participants", "draw_participants", "draws", "number", "validator_signer"]

_SS58_FORMAT = 42  # Bittensor's


@dataclass(frozen=True)
class Participants:
    """The miners, by index."""

    hotkeys: tuple[Hotkey, ...]
    hostile: frozenset[int]

    @property
    def honest(self) -> tuple[int, ...]:
        """Indices of the honest miners, in order."""
        return tuple(i for i in range(len(self.hotkeys)) if i not in self.hostile)

    @property
    def hostile_keys(self) -> frozenset[Hotkey]:
        """Hotkeys of the hostile miners."""
        return frozenset(self.hotkeys[i] for i in self.hostile)


def draw_participants(miners: int, hostile: int, seed: int) -> Participants:
    """`miners` hotkeys, valid addresses without a secret key; `hostile` of them are drawn."""
    from bittensor.sp_core import ss58_encode

    hotkeys = tuple(Hotkey(ss58_encode(_bytes(seed, "miner", i), _SS58_FORMAT)) for i in range(miners))
    chosen = random.Random(number(seed, "hostile")).sample(range(miners), hostile)  # noqa: S311  (no secret)
    return Participants(hotkeys, frozenset(chosen))


def validator_signer(seed: int) -> Signer:
    """The validator's key, which signs orders as in any run."""
    from bittensor.sp_core import Keypair

    return Signer(Keypair.create_from_seed(_bytes(seed, "validator")))


def draws(seed: int) -> Callable[[int], bytes]:
    """A source of bytes, the same for the same seed, in place of the random bytes of a real run."""
    count = itertools.count()
    return lambda size: _bytes(seed, "secret", next(count), size=size)


def number(seed: int, *what: str | int) -> int:
    """A seed below 2**63 for the random numbers named by `what`."""
    return int.from_bytes(_bytes(seed, *what, size=8), "big") >> 1


def _bytes(seed: int, *what: str | int, size: int = 32) -> bytes:
    words = " ".join(map(str, ("fedgpt2 simulate", seed, *what)))
    return hashlib.shake_256(words.encode()).digest(size)
