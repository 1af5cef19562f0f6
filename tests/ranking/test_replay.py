"""Replays from a ledger: the same to the bit, and every difference named."""

import json
from pathlib import Path

import msgspec
import pytest
from fedgpt2.cli.rankings import difference_lines

from fedgpt2.errors import RunDirectoryError
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.ranking.replay import (
    Recorded,
    differences,
    kept_differences,
    otherwise_ranked,
    read_rows,
    replay,
    table_of,
)
from fedgpt2.ranking.table import Rank, ranks
from tests.ranking.runs import write_run
from tests.ranking.worlds import noisy_rounds, refused, rule

QUALITY = {"a": 4.0, "b": 2.0, "c": 1.0}


def bodies(folder: Path) -> list[str]:
    ledger = Ledger(folder / "ledger.sqlite")
    try:
        return list(ledger.rounds())
    finally:
        ledger.close()


def test_a_replay_from_the_ledger_is_the_live_table_to_the_bit(tmp_path: Path) -> None:
    rounds = noisy_rounds(QUALITY, 12, rule=rule(tau=0.2))
    rounds[3] = msgspec.structs.replace(rounds[3], miners=(*rounds[3].miners, refused("liar")))
    live = write_run(tmp_path, rounds)
    rows = read_rows(bodies(tmp_path))
    history = replay(rows)
    assert history.table == live
    assert table_of(bodies(tmp_path)) == (live, 0)
    assert repr(ranks(history.table)) == repr(ranks(live))
    assert differences(rows, history) == []
    ledger = Ledger(tmp_path / "ledger.sqlite")
    stored = [msgspec.json.decode(body, type=Rank) for body in (ledger.ratings() or {}).values()]
    ledger.close()
    assert kept_differences(12, stored, ranks(live)) == []
    assert sorted(stored, key=lambda line: line.rank) == ranks(live)


def test_every_number_that_differs_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 4))
    values = [json.loads(body) for body in bodies(tmp_path)]
    values[2]["miners"][1]["score"] += 1e-17 + abs(values[2]["miners"][1]["score"]) * 3e-16
    values[1]["miners"][0]["rating"] = None
    values[3]["miners"].append({"hotkey": "stranger", "rating": 25.0})
    rows = read_rows(map(json.dumps, values))
    found = differences(rows, replay(rows))
    assert [(each.round, each.hotkey, each.what) for each in found] == [
        (2, "a", "rating"),
        (3, "b", "score"),
        (4, "stranger", "rating"),
    ]
    assert found[0].recorded is None
    assert found[2].replayed is None


def test_rounds_of_another_revision_are_named(tmp_path: Path) -> None:
    rounds = [msgspec.structs.replace(each, revision=1) for each in noisy_rounds(QUALITY, 2)]
    write_run(tmp_path, [*rounds, *noisy_rounds(QUALITY, 4)[2:]])
    rows = read_rows(bodies(tmp_path))
    assert otherwise_ranked(rows) == [1, 2]
    assert table_of(bodies(tmp_path)) == (replay(rows).table, 2)
    found = differences([replace_score(rows[0]), *rows[1:]], replay(rows))
    said = difference_lines(4, found, [1, 2])[1]
    assert said.startswith("2 rounds from 1 on were ranked by another revision of the rule, under which")
    assert difference_lines(4, found, [3])[1].startswith("round 3 was ranked by another revision")
    assert difference_lines(4, [], [1])[0].endswith("to the bit")
    assert len(difference_lines(4, found)) == len(difference_lines(4, found, [1])) - 1


def replace_score(row: Recorded) -> Recorded:
    first = msgspec.structs.replace(row.miners[0], score=9.0)
    return msgspec.structs.replace(row, miners=(first, *row.miners[1:]))


def test_a_table_kept_with_other_numbers_differs(tmp_path: Path) -> None:
    lines = ranks(write_run(tmp_path, noisy_rounds(QUALITY, 4)))
    import dataclasses

    forged = [dataclasses.replace(lines[0], rating=99.0), *lines[1:-1]]
    found = kept_differences(4, forged, lines)
    assert [(each.hotkey, each.what) for each in found if each.hotkey == lines[0].hotkey] == [
        (lines[0].hotkey, "kept rating")
    ]
    assert {each.hotkey for each in found} == {lines[0].hotkey, lines[-1].hotkey}


def test_other_settings_rank_otherwise(tmp_path: Path) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 6))
    rows = read_rows(bodies(tmp_path))
    history = replay(rows, {"tau": 1.0})
    assert history.table.rule.tau == 1.0
    assert differences(rows, history)


def test_rows_from_before_there_was_evidence_are_passed_over(tmp_path: Path) -> None:
    rounds = noisy_rounds(QUALITY, 4)
    write_run(tmp_path, rounds)
    values = [json.loads(body) for body in bodies(tmp_path)]
    del values[0]["evidence"]
    rows = read_rows(map(json.dumps, values))
    history = replay(rows)
    assert [number for number, _ in history.entries] == [2, 3, 4]
    assert table_of(map(json.dumps, values))[0] == history.table
    assert all(each.round > 1 for each in differences(rows, history))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(round=7), "round 2 is about round 7"),
        (lambda row: row["evidence"].update(round=3), "round 2 is about round 2"),
        (lambda row: row["evidence"].pop("miners"), "round 2 is damaged"),
        (lambda row: row["evidence"]["products"]["gradient"].pop(), "round 2 is damaged"),
    ],
)
def test_a_row_that_is_none_is_one_line(tmp_path: Path, change, message: str) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 3))
    values = [json.loads(body) for body in bodies(tmp_path)]
    change(values[1])
    with pytest.raises(RunDirectoryError, match=message) as caught:
        read_rows(map(json.dumps, values))
    assert "\n" not in str(caught.value)


def test_settings_that_are_none_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 3))
    values = [json.loads(body) for body in bodies(tmp_path)]
    values[1]["evidence"]["rule"]["tau"] = "much"
    with pytest.raises(RunDirectoryError, match="round 2 was ranked by settings that are none"):
        replay(read_rows(map(json.dumps, values)))
