"""rounds.jsonl: the ledger's standing rounds, a line each, for people and plots."""

import os
from pathlib import Path

from fedgpt2.ledger.files import disk_errors, write_durably

__all__ = ["Journal"]


class Journal:
    """The file and how it is kept equal to the ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewrite(self, rounds: list[str]) -> None:
        """Make the file exactly these lines: what a resume does, cutting back what was not committed."""
        write_durably(self.path, "".join(f"{line}\n" for line in rounds).encode())

    def append(self, line: str) -> None:
        """Add a committed round in one write."""
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f"{line}\n".encode())
            finally:
                os.close(descriptor)
