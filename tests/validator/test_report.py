"""The clock of a round."""

import time

import msgspec

from fedgpt2.link.base import Traffic
from fedgpt2.validator.report import Clock


def spent(clock, phase, seconds=0.02):
    time.sleep(seconds)
    clock.mark(phase)


def test_every_phase_is_there_and_they_add_up():
    clock = Clock()
    spent(clock, "snapshot")
    time.sleep(0.03)
    clock.mark_collected([Traffic(sent=0.01, described=0.02, received=0.03), Traffic(sent=0.005)])
    spent(clock, "admit")
    spent(clock, "admit")
    seconds = msgspec.structs.asdict(clock.seconds())
    total = seconds.pop("total")
    assert seconds["snapshot"] >= 0.02
    assert seconds["admit"] >= 0.04
    assert (seconds["send"], seconds["wait"]) == (0.01, 0.01)
    assert seconds["receive"] > 0
    assert (seconds["aggregate"], seconds["step"]) == (0.0, 0.0)
    assert abs(sum(seconds.values()) - total) < 0.001


def test_without_an_answer_all_time_is_waiting():
    clock = Clock()
    time.sleep(0.01)
    clock.mark_collected([Traffic(sent=0.002), Traffic()])
    seconds = msgspec.structs.asdict(clock.seconds())
    assert (seconds["send"], seconds["receive"]) == (0.002, 0.0)
    assert seconds["wait"] >= 0.007


def test_of_nobody():
    clock = Clock()
    clock.mark_collected([])
    assert clock.seconds().send == 0.0
