"""Trying again: how often, after how long, and when to give up. Everything here ends.

What a server asks for (`Retry-After`, `RateLimit`) is waited for; without a word from it the wait doubles.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["GaveUp", "Passing", "Patience"]

T = TypeVar("T")


class Passing(Exception):
    """A failure that may be over in a moment; `wait` is the seconds a server asked for, if it did."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class GaveUp(Exception):
    """The last failure of several; its text says how many."""


@dataclass(frozen=True)
class Patience:
    """Bounds on trying again; `sleep` is how to wait."""

    tries: int = 6
    first_wait: float = 0.5  # seconds; doubles from try to try
    longest_wait: float = 8.0  # of the doubling
    most_asked: float = 330.0  # the longest wait a server may ask for; the hub counts in windows of 300 s
    sleep: Callable[[float], None] = time.sleep

    def persist(self, attempt: Callable[[], T]) -> T:
        """Result of `attempt`, called again while it raises Passing. Raises GaveUp when `tries` are used up."""
        for number in range(1, self.tries + 1):
            try:
                return attempt()
            except Passing as failure:
                wait = self._wait(number, failure)
                if number == self.tries or wait > self.most_asked:
                    raise GaveUp(self._last_words(number, wait, failure)) from failure
                self.sleep(wait)
        raise GaveUp("not tried at all")

    def _wait(self, number: int, failure: Passing) -> float:
        doubled: float = self.first_wait * 2.0 ** (number - 1)
        return min(doubled, self.longest_wait) if failure.wait is None else failure.wait

    def _last_words(self, number: int, wait: float, failure: Passing) -> str:
        if wait > self.most_asked:
            return f"{failure}; it asks to wait {wait:g} s"
        return f"{failure} ({number} tries)"
