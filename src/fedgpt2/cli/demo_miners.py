"""The miners of a demo: their ports, and the attacks of the hostile one."""

import random
import socket
from contextlib import ExitStack
from dataclasses import dataclass

__all__ = ["ADMISSIBLE", "CYCLE", "DemoMiners", "choose_miners", "free_ports"]

CYCLE = ("wrong_shapes", "nan", "stale", "sign_flip", "scale", "scale_bound")
"""Attacks that the hostile miner sends in turn, by their names in the attack arena."""
ADMISSIBLE = frozenset({"sign_flip", "scale_bound"})
"""The attacks among them that pass admission: only the aggregation rule can limit them."""


@dataclass(frozen=True)
class DemoMiners:
    """The miners' ports on loopback, and the port of the hostile one."""

    ports: tuple[int, ...]
    hostile: int | None

    @property
    def hostile_axon(self) -> str | None:
        """Address of the hostile miner as in rounds.jsonl."""
        return None if self.hostile is None else f"127.0.0.1:{self.hostile}"


def choose_miners(honest: int, seed: int, *, hostile: bool) -> DemoMiners:
    """Choose free ports for `honest` miners and, with `hostile`, one more at a position drawn by `seed`."""
    ports = free_ports(honest + hostile)
    position = random.Random(seed).randrange(len(ports))  # noqa: S311  (not a secret)
    return DemoMiners(ports, ports[position] if hostile else None)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports on loopback that are free now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
