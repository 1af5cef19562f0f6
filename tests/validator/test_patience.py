"""Waiting that ends when the program is told to."""

import asyncio

import pytest

from fedgpt2.event_loop import Stop, Stopped, until_stopped


async def value():
    await asyncio.sleep(0)
    return 7


async def test_the_result_of_the_work():
    assert await until_stopped(Stop(), value()) == 7


async def test_its_failure():
    async def fail():
        raise LookupError("x")

    with pytest.raises(LookupError):
        await until_stopped(Stop(), fail())


async def test_a_stop_cancels_the_work_and_waits_for_its_end():
    stop, ended = Stop(), []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    asyncio.get_running_loop().call_later(0.01, stop.set)
    with pytest.raises(Stopped):
        await until_stopped(stop, work())
    assert ended == [True]


async def test_a_stop_before_the_work_begins():
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        await until_stopped(stop, asyncio.sleep(60))


async def test_who_waits_may_be_cancelled_and_leaves_nothing_running():
    started, ended = asyncio.Event(), asyncio.Event()

    async def work():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    task = asyncio.create_task(until_stopped(Stop(), work()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
