"""Who takes part in a simulation, and everything in it that is drawn: all from one seed."""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable
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
        """Indices of those who do as they are asked, in order."""
        return tuple(i for i in range(len(self.hotkeys)) if i not in self.hostile)

    def keys(self, indices: Iterable[int]) -> frozenset[Hotkey]:
        """The hotkeys of these miners."""
        return frozenset(self.hotkeys[i] for i in indices)


def draw_participants(miners: int, hostile: int, seed: int) -> Participants:
    """`miners` hotkeys, valid addresses that nobody has the secret of, `hostile` of them drawn."""
    from bittensor.sp_core import ss58_encode

    hotkeys = tuple(Hotkey(ss58_encode(_bytes(seed, "miner", i), _SS58_FORMAT)) for i in range(miners))
    chosen = random.Random(number(seed, "hostile")).sample(range(miners), hostile)  # noqa: S311  (no secret)
    return Participants(hotkeys, frozenset(chosen))


def validator_signer(seed: int) -> Signer:
    """The validator's key: it signs orders here as anywhere."""
    from bittensor.sp_core import Keypair

    return Signer(Keypair.create_from_seed(_bytes(seed, "validator")))


def draws(seed: int) -> Callable[[int], bytes]:
    """A source of bytes that is the same for the same seed: for what a real run draws in secret."""
    count = itertools.count()
    return lambda size: _bytes(seed, "secret", next(count), size=size)


def number(seed: int, *what: str | int) -> int:
    """The seed, below 2**63, of what is drawn for `what`."""
    return int.from_bytes(_bytes(seed, *what, size=8), "big") >> 1


def _bytes(seed: int, *what: str | int, size: int = 32) -> bytes:
    words = " ".join(map(str, ("fedgpt2 simulate", seed, *what)))
    return hashlib.shake_256(words.encode()).digest(size)
