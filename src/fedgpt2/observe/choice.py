"""Which of the two views suits where the output goes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from fedgpt2.observe.observer import Observer
from fedgpt2.observe.outlet import Outlet
from fedgpt2.observe.plain import Lines

__all__ = ["observer_for"]


@contextmanager
def observer_for(stream: TextIO, *, plain: bool) -> Iterator[Observer]:
    """The live console on a terminal that can show it, plain lines anywhere else; a lost stream fails neither."""
    outlet = Outlet(stream, sys.stderr)
    if plain or not stream.isatty() or "utf" not in (stream.encoding or "").lower():
        yield Lines(outlet.say)
        return
    from rich.console import Console

    from fedgpt2.observe.console import Live

    with Live(Console(file=cast("TextIO", outlet))) as live:
        yield live
