"""Which of the two views suits where the output goes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, cast

from fedgpt2.observe.observer import Observer
from fedgpt2.observe.plain import Lines
from fedgpt2.observe.safe_stream import SafeStream

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["observer_for"]


@contextmanager
def observer_for(stream: TextIO, *, plain: bool) -> Iterator[Observer]:
    """The live console on a terminal that can show it, plain lines anywhere else; a lost stream fails neither."""
    outlet = SafeStream(stream, sys.stderr)
    console = None if plain else _console(outlet)
    if console is None:
        yield Lines(outlet.say)
        return
    from fedgpt2.observe.console import Live

    with Live(console) as live:
        yield live


def _console(outlet: SafeStream) -> "Console | None":
    """A console that redraws in place; None where it would show nothing before the run has ended."""
    if not outlet.isatty() or "utf" not in (outlet.encoding or "").lower():
        return None
    from rich.console import Console

    console = Console(file=cast("TextIO", outlet))
    return console if console.is_terminal and not console.is_dumb_terminal else None
