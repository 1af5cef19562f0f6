"""The program with a probe in its event loop: how late a timer of 10 ms fires, and what ran meanwhile.

    python probed.py OUTPUT COMMAND ...

A thread looks at all stacks whenever the timer is overdue; OUTPUT gets the delays with these stacks.
"""

import asyncio
import json
import sys
import threading
import time
import traceback
from pathlib import Path

from fedgpt2 import event_loop
from fedgpt2.cli.main import main
from fedgpt2.cli.process import exit_process

_TIMER = 0.01
_OVERDUE = 0.03


class Probe:
    """Measures how late the timer was, in seconds, and what the program did then."""

    def __init__(self, output):
        self._output = Path(output)
        self._due = time.monotonic() + _TIMER
        self._stack = ""
        self._delays = []

    async def measure(self):
        """Runs on the event loop until it is cancelled."""
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            self._due, self._stack = time.monotonic() + _TIMER, ""
            await asyncio.sleep(_TIMER)
            late = time.monotonic() - self._due
            if late > _OVERDUE:
                self._delays.append({"late": late, "during": self._stack})

    def _watch(self):
        while True:
            time.sleep(_TIMER / 2)
            if time.monotonic() - self._due > _OVERDUE:
                frames = {name: frame for name, frame in sys._current_frames().items() if name != threading.get_ident()}
                self._stack = "\n".join("".join(traceback.format_stack(frame)[-4:]) for frame in frames.values())

    def write(self):
        """Write the delays, largest first."""
        self._output.write_text(json.dumps(sorted(self._delays, key=lambda delay: -delay["late"])))


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
    exit_process(main(sys.argv[2:]))
