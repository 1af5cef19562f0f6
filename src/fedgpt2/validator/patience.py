"""Waiting that a request to stop can end."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fedgpt2.network.loop import Stop

__all__ = ["Stopped", "unless"]

T = TypeVar("T")


class Stopped(Exception):
    """The validator was told to stop."""


async def unless(stop: Stop, work: Awaitable[T]) -> T:
    """Result of `work`, or Stopped as soon as `stop` is set; `work` is then cancelled and waited for.

    What runs in a thread (`off_loop`) cannot be cancelled and goes on by itself: it must only read what is shared.
    """
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Stopped
        return task.result()
    finally:
        waiter.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
