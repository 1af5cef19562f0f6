"""Who takes part in a demo, and where."""

import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass

__all__ = ["ADMISSIBLE", "CYCLE", "Cast", "draw"]

CYCLE = ("wrong_shapes", "nan", "stale", "sign_flip", "scale", "scale_bound")
"""What the hostile miner does in turn, by the names of the arena."""
ADMISSIBLE = frozenset({"sign_flip", "scale_bound"})
"""Those of them that no check of a single answer can tell from honest work: the rule has to."""


@dataclass(frozen=True)
class Cast:
    """The miners' ports on loopback, and which of them the hostile one has."""

    ports: tuple[int, ...]
    hostile: int | None

    @property
    def hostile_axon(self) -> str | None:
        """The hostile miner as rounds.jsonl names it."""
        return None if self.hostile is None else f"127.0.0.1:{self.hostile}"


def draw(honest: int, seed: int, *, hostile: bool) -> Cast:
    """Free ports for `honest` miners and, if there is one, a hostile one at a place drawn by `seed`."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(honest + hostile)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = tuple(each.getsockname()[1] for each in sockets)
    place = random.Random(seed).randrange(len(ports))  # noqa: S311  (a draw, not a secret)
    return Cast(ports, ports[place] if hostile else None)
