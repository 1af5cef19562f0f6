"""The lines of rounds.jsonl and the facts of a run, as typed values for those who show them."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

__all__ = ["Closing", "Facts", "MinerRow", "RoundRow", "Volume", "read_closing", "read_facts", "read_row"]


class Volume(Struct, frozen=True):
    """Bytes to the miners (down) and from them (up)."""

    down: int = 0
    up: int = 0


class MinerRow(Struct, frozen=True):
    """One miner's share of a round."""

    hotkey: str
    axon: str
    status: str  # admitted | refused | failed
    fault: str | None = None
    reason: str | None = None
    tokens: int = 0
    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    rank: int | None = None
    rating: float | None = None
    sigma: float | None = None
    pay: float | None = None
    weight: float = 0.0  # in what was applied


class RoundRow(Struct, frozen=True):
    """A line of rounds.jsonl, as far as people watch it; further names in it are left alone."""

    round: int
    applied: bool
    reason: str | None = None
    train_loss: float | None = None
    initial_val_loss: float | None = None  # before the first step
    val_loss: float | None = None
    lr: float = 0.0
    tokens: int = 0
    seconds: dict[str, float] = {}
    bytes: Volume = Volume()
    miners: tuple[MinerRow, ...] = ()


class Facts(Struct, frozen=True):
    """What is known of a run when it starts."""

    run_dir: str = ""
    model: str = ""
    parameters: int = 0
    source: str = ""
    axons: tuple[str, ...] = ()
    rounds: int = 0  # 0: until stopped
    resumed_after: int = 0
    aggregation: str = ""
    unigram_loss: float | None = None


class Closing(Struct, frozen=True):
    """What is known of a run when it ends."""

    run_dir: str = ""
    rounds: int = 0
    peak_mb: float | None = None


def read_row(row: Mapping[str, object] | bytes) -> RoundRow:
    """A round from its mapping or its line. Raises msgspec.DecodeError for a line that is not one."""
    if isinstance(row, bytes):
        return msgspec.json.decode(row, type=RoundRow)
    return msgspec.convert(row, RoundRow)


def read_facts(facts: Mapping[str, object]) -> Facts:
    """The facts a validator starts with."""
    return msgspec.convert(facts, Facts)


def read_closing(facts: Mapping[str, object]) -> Closing:
    """The facts a validator ends with."""
    return msgspec.convert(facts, Closing)
