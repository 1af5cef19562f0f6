"""Work off the loop: its result and its error come back, and it never holds up the exit."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from fedgpt2.event_loop import off_loop


async def test_results_and_errors_come_back():
    assert await off_loop(lambda a, b=0: (a, b, threading.current_thread().daemon), 1, b=2) == (1, 2, True)
    with pytest.raises(ZeroDivisionError):
        await off_loop(lambda: 1 // 0)


async def test_a_cancelled_caller_leaves_the_thread_to_finish():
    release, done = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(5)
        done.set()

    task = asyncio.create_task(off_loop(work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await asyncio.to_thread(done.wait, 5)


def test_the_exit_does_not_wait():
    code = (
        "import asyncio, time\n"
        "from fedgpt2.event_loop import off_loop\n"
        "async def main():\n"
        "    asyncio.ensure_future(off_loop(time.sleep, 60))\n"
        "    await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=env, timeout=10).returncode == 0
