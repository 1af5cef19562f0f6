"""What a validator tells whoever watches."""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Observer"]


class Observer(Protocol):
    """Told of everything a person may want to see; returns at once and raises nothing of its own."""

    def started(self, facts: Mapping[str, object]) -> None:
        """The run is set up: `rows.Facts`."""
        ...

    def waiting(self, message: str) -> None:
        """What is being waited for."""
        ...

    def round_done(self, row: Mapping[str, object]) -> None:
        """A committed round: its line of rounds.jsonl."""
        ...

    def notice(self, line: str) -> None:
        """Something out of the ordinary."""
        ...

    def finished(self, facts: Mapping[str, object]) -> None:
        """The run has ended: `rows.Closing`."""
        ...
