"""Replays from a ledger: equal to the bit, and every difference is named."""

import contextlib
import dataclasses
from pathlib import Path

import msgspec
import pytest

from fedgpt2.cli.ranking_report import difference_lines
from fedgpt2.errors import RunDirectoryError
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.replay import (
    differences,
    other_revision,
    replay,
    stored_differences,
    table_of,
)
from fedgpt2.ranking.table import Rank, ranks
from tests.ranking.runs import write_run
from tests.ranking.worlds import noisy_rounds, refused, rule, with_evidence

QUALITY = {"a": 4.0, "b": 2.0, "c": 1.0}


def stored(folder: Path) -> list[RoundRecord]:
    with contextlib.closing(Ledger(folder / "ledger.sqlite", reading=True)) as ledger:
        return list(ledger.records())


def test_a_replay_from_the_ledger_is_the_live_table_to_the_bit(tmp_path: Path) -> None:
    rounds = noisy_rounds(QUALITY, 12, rule=rule(tau=0.2))
    rounds[3] = msgspec.structs.replace(rounds[3], miners=(*rounds[3].miners, refused("mallory")))
    live = write_run(tmp_path, rounds)
    records = stored(tmp_path)
    history = replay(records)
    assert history.table == live
    assert table_of(records) == (live, 0)
    assert repr(ranks(history.table)) == repr(ranks(live))
    assert differences(records, history) == []
    ledger = Ledger(tmp_path / "ledger.sqlite")
    lines = [msgspec.json.decode(body, type=Rank) for body in (ledger.ratings() or {}).values()]
    ledger.close()
    assert stored_differences(12, lines, ranks(live)) == []
    assert sorted(lines, key=lambda line: line.rank) == ranks(live)


def changed(record: RoundRecord, hotkey: str, **fields: object) -> RoundRecord:
    """The record with other values in the fields of one miner."""
    miners = (msgspec.structs.replace(m, **fields) if m.hotkey == hotkey else m for m in record.miners)
    return msgspec.structs.replace(record, miners=tuple(miners))


def test_every_number_that_differs_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 4))
    records = stored(tmp_path)
    score = records[2].miners[1].score
    assert score is not None
    records[1] = changed(records[1], "a", rating=None)
    records[2] = changed(records[2], "b", score=score + 1e-17 + abs(score) * 3e-16)
    found = differences(records, replay(records))
    assert [(each.round, each.hotkey, each.what) for each in found] == [(2, "a", "rating"), (3, "b", "score")]
    assert found[0].recorded is None


def test_rounds_of_another_revision_are_named(tmp_path: Path) -> None:
    rounds = [with_evidence(each, revision=1) for each in noisy_rounds(QUALITY, 2)]
    write_run(tmp_path, [*rounds, *noisy_rounds(QUALITY, 4)[2:]])
    records = stored(tmp_path)
    assert other_revision(records) == [1, 2]
    assert table_of(records) == (replay(records).table, 2)
    found = differences([changed(records[0], "a", score=9.0), *records[1:]], replay(records))
    line = difference_lines(4, found, [1, 2])[1]
    assert line.startswith("2 rounds from 1 on were ranked by another revision of the rule")
    assert difference_lines(4, found, [3])[1].startswith("round 3 was ranked by another revision")
    assert difference_lines(4, [], [1])[0].endswith("to the bit")
    assert len(difference_lines(4, found)) == len(difference_lines(4, found, [1])) - 1


def test_a_stored_table_with_other_numbers_differs(tmp_path: Path) -> None:
    lines = ranks(write_run(tmp_path, noisy_rounds(QUALITY, 4)))
    forged = [dataclasses.replace(lines[0], rating=99.0), *lines[1:-1]]
    found = stored_differences(4, forged, lines)
    assert [(each.hotkey, each.what) for each in found if each.hotkey == lines[0].hotkey] == [
        (lines[0].hotkey, "stored rating")
    ]
    assert {each.hotkey for each in found} == {lines[0].hotkey, lines[-1].hotkey}


def test_other_settings_rank_otherwise(tmp_path: Path) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 6))
    records = stored(tmp_path)
    history = replay(records, {"tau": 1.0})
    assert history.table.rule.tau == 1.0
    assert differences(records, history)


def test_invalid_settings_are_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, noisy_rounds(QUALITY, 3))
    records = stored(tmp_path)
    records[1] = with_evidence(records[1], rule={**records[1].evidence.rule, "tau": "much"})
    with pytest.raises(RunDirectoryError, match="round 2 has invalid ranking settings") as caught:
        replay(records)
    assert "\n" not in str(caught.value)
