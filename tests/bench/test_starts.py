"""Where the cells of the robustness record begin: trained once, copied for each, gone when it is done."""

from pathlib import Path

import pytest

from fedgpt2.errors import SetupError
from trials import running
from trials.cells import Cell
from trials.running import Store
from trials.starts import Starts

CELL = Cell("default", True, "alie", 3)
COMMON = (
    *("--model.preset", "tiny", "--data.source", "sample", "--data.windows", "1", "--run.threads", "1"),
    *("--ranking.rule", "off", "--run.eval_windows", "2", "--run.score_windows", "1", "--optimizer.horizon", "2"),
)


def test_a_cell_goes_on_from_rounds_without_liars(tmp_path: Path) -> None:
    said: list[str] = []
    starts = Starts(tmp_path / "starts", COMMON, 1)
    starts.prepare([3], said.append)
    assert said == ["training 1 rounds without liars for seed 3"]
    starts.prepare([3], pytest.fail)
    store = Store.open(tmp_path / "cells", COMMON)
    assert running.run([CELL], (*COMMON, "--rounds", "2"), store, 1, lambda now, ended: None, place=starts) == []
    found = store.get(CELL)
    assert found is not None
    assert [row["round"] for row in found.rounds] == [2]
    assert found.ranks == {}, "nobody was scored"
    assert [path.name for path in (tmp_path / "starts").iterdir()] == ["start-3"]


def test_what_a_start_fails_by_is_said_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    starts = Starts(tmp_path, ("--model.preset", "giant"), 1)
    with pytest.raises(SetupError, match=r"seed 3: .*no such preset"):
        starts.prepare([3], lambda line: None)
    assert not (tmp_path / "start-3").exists()
