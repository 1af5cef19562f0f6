"""Who ends above whom: what the arena's runs are judged by."""

import json
from pathlib import Path

import pytest

import ranking_arena
from trials.cells import Cell
from trials.running import Failed, condense
from trials.table import Result


def result(cell: Cell, hostile: list[int | None], honest: list[int | None], pay: list[float]) -> Result:
    paid = {"hostile": pay[: len(hostile)], "honest": pay[len(hostile) :]}
    return Result(cell.name, 6.0, [], 6.6, "abc", 30.0, 31.0, "", {"hostile": hostile, "honest": honest}, paid)


def cell(attack: str, seed: int = 1) -> Cell:
    return Cell("default", True, attack, seed)


def test_one_hostile_miner_above_an_honest_one_breaks_the_row() -> None:
    found = {
        cell("alie"): result(cell("alie"), [4, 5], [1, 2, 3], [0.0, 0.0, 0.4, 0.3, 0.3]),
        cell("alie", 2): result(cell("alie", 2), [3, None], [1, 2, 4], [0.1, 0.0, 0.3, 0.3, 0.3]),
        cell("zero"): result(cell("zero"), [4, 5], [1, 2, 3], [0.0, 0.0, 0.4, 0.3, 0.3]),
    }
    rows = ranking_arena.judge(found)
    assert [(row.attack, row.seeds, row.above, row.best, row.holds) for row in rows] == [
        ("alie", 2, 1, 3, False),
        ("zero", 1, 0, 4, True),
    ]
    assert rows[0].together == pytest.approx(1 / 3)


@pytest.mark.parametrize(("attack", "holds"), [("copy", False), ("sybils_pool", False), ("tiny_batch", True)])
def test_sharers_of_one_gradient_are_paid_for_one(attack: str, holds: bool) -> None:
    found = {cell(attack): result(cell(attack), [4, 5], [1, 2, 3], [0.2, 0.2, 0.2, 0.2, 0.2])}
    (row,) = ranking_arena.judge(found)
    assert (row.together, row.beside) == (pytest.approx(2.0), pytest.approx(1.0))
    assert row.holds is holds


@pytest.mark.parametrize(
    ("pay", "holds"),
    [
        ([0.30, 0.00, 0.4, 0.2, 0.1], True),  # more than the mean, no more than the luckiest
        ([0.30, 0.001, 0.4, 0.2, 0.1], False),
        ([0.41, 0.00, 0.4, 0.2, 0.1], False),
        ([0.10, 0.10, 0.4, 0.2, 0.2], True),  # two names paid, for less than one miner's work
        ([1.00, 0.00, 0.0, 0.0, 0.0], False),
    ],
)
def test_one_name_of_sybils_may_have_an_honest_miners_luck(pay: list[float], holds: bool) -> None:
    (row,) = ranking_arena.judge({cell("sybils"): result(cell("sybils"), [2, 5], [1, 3, 4], pay)})
    assert row.holds is holds


def test_each_seed_is_judged_by_itself() -> None:
    found = {
        cell("sybils"): result(cell("sybils"), [3, 5], [1, 2, 4], [0.05, 0.05, 0.4, 0.3, 0.2]),
        cell("sybils", 2): result(cell("sybils", 2), [2, 5], [1, 3, 4], [0.35, 0.0, 0.4, 0.2, 0.05]),
    }
    (row,) = ranking_arena.judge(found)
    assert row.together > 1.0
    assert row.beside > 0.0
    assert row.holds


@pytest.mark.parametrize(("hostile", "holds"), [([2, 5], True), ([2, 3], False)])
def test_of_sybils_who_computed_one_gradient_one_may_stand_among_the_honest(hostile: list[int], holds: bool) -> None:
    honest = sorted({1, 2, 3, 4, 5} - {*hostile})
    found = {cell("sybils"): result(cell("sybils"), [*hostile], honest, [0.1, 0.0, 0.3, 0.3, 0.3])}
    (row,) = ranking_arena.judge(found)
    assert row.holds is holds
    (other,) = ranking_arena.judge({cell("copy"): result(cell("copy"), [*hostile], honest, [0.1, 0.0, 0.3, 0.3, 0.3])})
    assert not other.holds


def test_what_a_run_printed_is_read_by_sides() -> None:
    miners = [
        {"hotkey": "a", "hostile": True, "rank": None, "rating": None, "weight": 0.0, "pay": None},
        {"hotkey": "b", "hostile": False, "rank": 1, "rating": 25.0, "weight": 1.0, "pay": 1.0},
    ]
    settings = {"ranking": {"rule": "contribution"}}
    said = {"settings": settings, "final_val_loss": 6.0, "unigram_loss": 6.6, "miners": miners, "rounds": []}
    made = condense(cell("late"), 0, json.dumps(said), "", (1.0, 2.0))
    assert not isinstance(made, Failed)
    assert (made.ranks, made.pay) == ({"hostile": [None], "honest": [1]}, {"hostile": [0.0], "honest": [1.0]})


def test_its_table_goes_between_the_markers_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ranking.md").read_text()
    assert page.count(ranking_arena.BEGIN) == page.count(ranking_arena.END) == 1
