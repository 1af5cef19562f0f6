"""rounds.jsonl: a line for each standing round of the ledger, for people and plots."""

from collections.abc import Iterable
from pathlib import Path

from fedgpt2.storage.files import append_line, disk_errors, replace_durably

__all__ = ["RoundLines"]


class RoundLines:
    """The file and how it is kept equal to the ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewrite(self, rounds: Iterable[str]) -> None:
        """Make the file exactly these lines: what a resume does, cutting back what was not committed."""
        replace_durably(self.path, (f"{line}\n".encode() for line in rounds))

    def append(self, line: str) -> None:
        """Add a committed round, whole or not at all. Raises DiskFullError or RunDirectoryError."""
        with disk_errors(self.path):
            append_line(self.path, f"{line}\n".encode(), durable=False)  # the ledger is; a resume writes it again
