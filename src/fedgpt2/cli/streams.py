"""Where a program's words go, made ready at its start."""

import io
import os
import sys

__all__ = ["prepare_streams"]


def prepare_streams() -> None:
    """After this, stdout and stderr are there, and take every character.

    What their encoding does not have is escaped: an hour of training must not end in a UnicodeEncodeError.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with it closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for as long as we run)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
