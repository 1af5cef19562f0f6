"""The event loop of a program: its exit code, and what one and two interrupts do."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fedgpt2.event_loop import Stop, run

PROGRAM = """
import asyncio, sys, time
from fedgpt2.event_loop import run


async def main(stop):
    print("ready", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    {then}
    return 7

sys.exit(run(main))
"""


def start(then: str, *before: str) -> subprocess.Popen[str]:
    """The program, with SIGHUP as a terminal leaves it, also where the tests themselves run under nohup."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": ""}
    command = [*before, sys.executable, "-c", PROGRAM.format(then=then)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, preexec_fn=heed_hangup)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def heed_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_the_program_finish(number):
    with start("await asyncio.sleep(0.1)") as process:
        process.send_signal(number)
        assert process.wait(5) == 7


def test_nohup_is_obeyed():
    with start("await asyncio.sleep(0)", "nohup") as process:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 7


@pytest.mark.parametrize("then", ["await asyncio.sleep(60)", "await asyncio.to_thread(time.sleep, 60)"])
def test_a_second_interrupt_leaves_at_once(then):
    with start(then) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert time.monotonic() - began < 2


def test_a_second_interrupt_leaves_though_nobody_reads():
    with start("print('unread', end=''); await asyncio.sleep(60)") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.stdout.close()
        time.sleep(0.2)  # until the word that nobody reads is in the buffer
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


def test_the_exit_code_is_main_s_and_errors_pass_through():
    async def main(stop: Stop) -> int:
        assert not stop.is_set()
        stop.set()
        await stop.wait()
        return 3

    async def fail(_: Stop) -> int:
        raise KeyError("x")

    assert run(main) == 3
    with pytest.raises(KeyError):
        run(fail)


def test_without_uvloop_asyncio_s_own_loop_serves(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)

    async def main(_: Stop) -> int:
        return 4

    assert run(main) == 4
