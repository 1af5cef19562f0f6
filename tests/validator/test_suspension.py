"""Who took orders and let the deadline pass, or whose link did, sits out; everybody else does not."""

import pytest

from fedgpt2.errors import Reason, Refused
from fedgpt2.link.base import ConnectedMiner, OrderResult
from fedgpt2.validator.suspension import Suspensions
from tests.records import miner_record, round_record

from .conftest import MINERS, answer, gone, nan, run_row

HERE, THERE = ConnectedMiner(MINERS[0], "127.0.0.1:1"), ConnectedMiner(MINERS[1], "127.0.0.1:2")
LATE = Reason.LATE.value


def add(suspensions, number, reasons):
    """Round `number`, in which these miners failed for these reasons, or for none."""
    statuses = {hotkey: "failed" if reason else "admitted" for hotkey, reason in reasons.items()}
    record = round_record(
        number, [miner_record(key, reason=reason, status=statuses[key]) for key, reason in reasons.items()]
    )
    suspensions.add(record)
    return record


def late(issued):
    return OrderResult(issued, failure=Refused(Reason.LATE, "no answer by the deadline"))


def at_work(reasons, rounds, *, at_least=1):
    """Rounds of `rounds` in which the first of two miners had work, if it then does what `reasons` says, in turn."""
    suspensions, turns, worked = Suspensions(), iter(reasons), []
    for number in range(1, rounds + 1):
        working = suspensions.active([HERE, THERE], number, at_least)
        add(suspensions, number, {miner.hotkey: next(turns, None) if miner == HERE else None for miner in working})
        worked += [number] if HERE in working else []
    return worked


@pytest.mark.parametrize("reason", [LATE, "timed_out", "cut_off", "unreachable", "compute_failed", "wrong_state"])
def test_one_lapse_is_free_and_further_ones_cost_more_and_more(reason):
    assert at_work([reason] * 6, 100)[:7] == [1, 2, 6, 22, 54, 86]


def test_a_failure_that_most_share_is_nobodys_lapse():
    suspensions, miners = (
        Suspensions(),
        [ConnectedMiner(hotkey, f"127.0.0.1:{i}") for i, hotkey in enumerate(MINERS[:3])],
    )
    for number in range(1, 5):
        add(suspensions, number, {MINERS[0]: "data_unavailable", MINERS[1]: "data_unavailable", MINERS[2]: None})
    assert suspensions.active(miners, 5, 1) == miners
    for number in range(5, 8):
        add(suspensions, number, {MINERS[0]: "late", MINERS[1]: "late", MINERS[2]: None})
    assert suspensions.active(miners, 8, 1) == miners[2:]


def test_two_answers_make_up_for_a_lapse():
    assert at_work([LATE, None, None, LATE, None], 8) == list(range(1, 9))


def test_whoever_answers_every_other_round_is_found_out():
    worked = at_work([LATE, None] * 20, 60)
    assert len(worked) < 30


@pytest.mark.parametrize("reason", [None, "non_finite", "busy", "cancelled"])
def test_nothing_else_makes_anybody_sit_out(reason):
    assert at_work([reason] * 9, 9) == list(range(1, 10))


def test_where_too_few_would_be_left_all_have_work():
    assert at_work([LATE] * 9, 9, at_least=2) == list(range(1, 10))


@pytest.mark.parametrize(("present", "lapsing", "left"), [(16, 15, 16), (16, 8, 16), (16, 7, 9), (4, 2, 4), (3, 2, 1)])
def test_an_outage_does_not_hand_the_model_to_whoever_was_spared(present, lapsing, left):
    miners = [ConnectedMiner(f"miner-{i}", f"127.0.0.1:{i}") for i in range(present)]
    suspensions = Suspensions()
    for number in (1, 2):
        add(suspensions, number, {miner.hotkey: LATE if i < lapsing else None for i, miner in enumerate(miners)})
    assert len(suspensions.active(miners, 3, 1)) == left


def test_whoever_answers_after_an_outage_is_back_for_good():
    miners = [ConnectedMiner(f"miner-{i}", f"127.0.0.1:{i}") for i in range(17)]
    suspensions = Suspensions()
    for number in range(1, 9):
        late = miners[:8] if number < 6 else []
        add(suspensions, number, {miner.hotkey: LATE if miner in late else None for miner in miners[:16]})
    assert suspensions.active(miners[:15], 9, 1) == miners[:15]  # one of them left
    assert suspensions.active(miners, 9, 1) == miners  # or one came


def test_a_resumed_run_remembers():
    suspensions = Suspensions()
    rows = []
    for number in (1, 2):
        rows.append(add(suspensions, number, {HERE.hotkey: LATE, THERE.hotkey: None}))
    again = Suspensions(rows)
    for number in range(3, 9):
        assert again.active([HERE, THERE], number, 1) == suspensions.active([HERE, THERE], number, 1)
    assert again.active([HERE, THERE], 3, 1) == [THERE]


def test_a_resumed_run_remembers_who_stayed_away_for_long():
    suspensions, rows = Suspensions(), []
    for number in range(1, 400):
        reasons = {THERE.hotkey: None} if 2 < number < 399 else {HERE.hotkey: LATE, THERE.hotkey: None}
        rows.append(add(suspensions, number, reasons))
    again = Suspensions(rows)
    for each in (suspensions, again):
        assert [each.active([HERE, THERE], number, 1) for number in (414, 415)] == [[THERE], [HERE, THERE]]


@pytest.mark.parametrize("lapsing", [late, gone])
async def test_the_round_gives_a_rest_to_a_miner_that_is_silent_or_gone_and_to_nobody_else(running, config, lapsing):
    with running(config, {MINERS[0]: answer, MINERS[1]: lapsing, MINERS[2]: nan, MINERS[3]: answer}) as run:
        rows = [await run_row(run, number, 0) for number in (1, 2, 3)]
        assert Suspensions(run.directory.ledger.records()).active([THERE], 4, 0) == [THERE]
    assert [len(row["miners"]) for row in rows] == [4, 4, 3]
    assert {miner["hotkey"] for miner in rows[2]["miners"]} == {MINERS[0], MINERS[2], MINERS[3]}
