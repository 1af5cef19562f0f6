"""The program with a probe in its event loop: how late a timer of 10 ms fires, and what ran on the loop meanwhile.

    python probed.py OUTPUT COMMAND ...

A thread looks at the loop's own stack whenever the timer is overdue; OUTPUT gets the largest delay and that stack.
"""

import asyncio
import json
import sys
import threading
import time
import traceback
from pathlib import Path

from fedgpt2.cli.exit import leave

from fedgpt2 import event_loop
from fedgpt2.cli.main import main

_TIMER = 0.01
_OVERDUE = 0.03


class Probe:
    """How late the timer was at worst, in seconds."""

    def __init__(self, output):
        self._output = Path(output)
        self._loop_thread = threading.get_ident()
        self._due = time.monotonic() + _TIMER
        self._stack = ""
        self.worst, self.during = 0.0, ""

    async def measure(self):
        """Runs on the event loop until it is cancelled."""
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            self._due = time.monotonic() + _TIMER
            await asyncio.sleep(_TIMER)
            late = time.monotonic() - self._due
            if late > self.worst:
                self.worst, self.during = late, self._stack
            self._stack = ""

    def _watch(self):
        while True:
            time.sleep(_TIMER / 2)
            if not self._stack and time.monotonic() - self._due > _OVERDUE:
                frame = sys._current_frames().get(self._loop_thread)
                self._stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""

    def write(self):
        """Write the result."""
        self._output.write_text(json.dumps({"late": self.worst, "during": self.during}))


def probed(run, output):
    """`event_loop.run` with a probe beside the program."""

    async def with_probe(work, stop):
        probe = Probe(output)
        task = asyncio.create_task(probe.measure())
        try:
            return await work(stop)
        finally:
            task.cancel()
            probe.write()

    return lambda work: run(lambda stop: with_probe(work, stop))


if __name__ == "__main__":
    event_loop.run = probed(event_loop.run, sys.argv[1])
    leave(main(sys.argv[2:]))
