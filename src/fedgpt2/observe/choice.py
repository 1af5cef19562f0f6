"""Which of the two views suits where the output goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from fedgpt2.observe.observer import Observer
from fedgpt2.observe.plain import Lines

__all__ = ["observer_for"]


@contextmanager
def observer_for(stream: TextIO, *, plain: bool) -> Iterator[Observer]:
    """The live console on a terminal that can show it, plain lines anywhere else."""
    if plain or not stream.isatty() or "utf" not in (stream.encoding or "").lower():
        yield Lines(lambda line: print(line, file=stream, flush=True))
        return
    from rich.console import Console

    from fedgpt2.observe.console import Live

    with Live(Console(file=stream)) as live:
        yield live
