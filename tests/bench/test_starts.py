"""The common start of a seed's cells: trained once, copied for each cell, removed when the cell ends."""

from pathlib import Path

import pytest

from fedgpt2.errors import SetupError
from trials import running
from trials.cells import Cell
from trials.starts import AttackFreeStarts
from trials.table import ResultTable

CELL = Cell("default", True, "alie", 3)
COMMON = (
    *("--model.preset", "tiny", "--data.source", "sample", "--data.windows", "1", "--run.threads", "1"),
    *("--ranking.rule", "off", "--run.eval_windows", "2", "--run.score_windows", "1", "--optimizer.horizon", "2"),
)


def test_a_cell_continues_attack_free_rounds(tmp_path: Path) -> None:
    lines: list[str] = []
    starts = AttackFreeStarts(tmp_path / "starts", COMMON, 1)
    starts.prepare([3], lines.append)
    assert lines == ["training 1 attack-free rounds for seed 3"]
    starts.prepare([3], pytest.fail)
    flags = (*COMMON, "--rounds", "2")
    table = ResultTable.open(tmp_path / "table.jsonl", flags)
    assert running.run([CELL], flags, table, 1, lambda now, ended: None, directories=starts) == []
    found = table.get(CELL)
    assert found is not None
    assert [row["round"] for row in found.rounds] == [2]
    assert found.ranks == {}, "nobody was ranked"
    assert [path.name for path in (tmp_path / "starts").iterdir()] == ["start-3"]


def test_a_failed_start_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    starts = AttackFreeStarts(tmp_path, ("--model.preset", "giant"), 1)
    with pytest.raises(SetupError, match=r"seed 3: .*no such preset"):
        starts.prepare([3], lambda line: None)
    assert not (tmp_path / "start-3").exists()
