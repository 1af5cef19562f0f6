"""The worker's end of `worker.Worker` beside an event loop, and what a worker says of its memory."""

import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fedgpt2.event_loop import off_loop

__all__ = ["MEMORY", "forget_peak", "memory", "serve_async"]

Answer = Mapping[str, Any]
Command = Callable[..., Answer | Awaitable[Answer]]


async def serve_async(commands: Mapping[str, Command]) -> None:
    """Answer commands until stdin closes, as `worker.serve` does; the event loop goes on between them."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        while line := await off_loop(sys.stdin.readline):
            command, arguments = json.loads(line)
            answer = commands[command](**arguments)
            if inspect.isawaitable(answer):
                answer = await answer
            print(json.dumps(answer), file=answers, flush=True)


def memory() -> dict[str, float]:
    """MB of 10^6 bytes this process holds (`resident_mb`), and the most it held since `forget_peak` (`peak_mb`)."""
    sizes = {"VmRSS": 0.0, "VmHWM": 0.0}
    for line in Path("/proc/self/status").read_text().splitlines():
        field, _, rest = line.partition(":")
        if field in sizes:
            sizes[field] = int(rest.split()[0]) * 1024 / 1e6
    return {"resident_mb": sizes["VmRSS"], "peak_mb": sizes["VmHWM"]}


def forget_peak() -> dict[str, float]:
    """Let the peak start again from the present size."""
    Path("/proc/self/clear_refs").write_text("5")
    return {}


MEMORY: Mapping[str, Callable[[], dict[str, float]]] = {"memory": memory, "forget_peak": forget_peak}
