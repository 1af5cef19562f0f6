"""What a validator reports to whoever watches: the port, and the values that pass through it."""

from typing import Protocol

from msgspec import Struct

from fedgpt2.protocol.round_record import RoundRecord

__all__ = ["Observer", "RunEnd", "RunStart"]


class RunStart(Struct, frozen=True, kw_only=True):
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


class RunEnd(Struct, frozen=True, kw_only=True):
    """What is known of a run when it ends."""

    run_dir: str = ""
    rounds: int = 0
    peak_mb: float | None = None


class Observer(Protocol):
    """Receives every event of a run; returns at once and raises nothing of its own."""

    def started(self, start: RunStart) -> None:
        """The run is set up."""
        ...

    def waiting(self, message: str) -> None:
        """What is being waited for."""
        ...

    def round_done(self, record: RoundRecord) -> None:
        """A round was committed."""
        ...

    def notice(self, line: str) -> None:
        """Something out of the ordinary."""
        ...

    def finished(self, end: RunEnd) -> None:
        """The run has ended."""
        ...
