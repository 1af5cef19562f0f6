"""Ledgers of the arena's runs: kept whole, and judged again as the run itself was."""

import json
from pathlib import Path

import pytest

import ranking_arena
from trials import running
from trials.cells import Cell
from trials.ledgers import Ledgers
from trials.running import Store

CELL = Cell("default", True, "sign_flip", 2)
COMMON = (
    *("--model.preset", "tiny", "--data.source", "sample", "--data.windows", "1", "--run.threads", "1"),
    *("--ranking.tokens", "64", "--run.eval_windows", "2", "--run.score_windows", "1"),
    *("--optimizer.horizon", "2", "--rounds", "2"),
)


def test_a_kept_ledger_is_judged_as_its_run_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    ledgers = Ledgers(tmp_path / "ledgers", 2)
    ledgers.prepare([2], pytest.fail)
    assert ledgers.judged(CELL) is None
    store = Store.open(tmp_path / "cells", COMMON)
    assert running.run([CELL], COMMON, store, 1, lambda now, ended: None, place=ledgers) == []
    assert [path.name for path in ledgers.folder.iterdir()] == [f"{CELL.name}.sqlite"]
    ran, again = store.get(CELL), ledgers.judged(CELL)
    assert ran is not None
    assert again is not None
    assert (again.ranks, again.pay) == (ran.ranks, ran.pay)
    assert len(ran.ranks["hostile"]) == 3
    monkeypatch.setattr("sys.argv", f"arena --ledgers {ledgers.folder} --again --seeds 1 2 --json".split())
    ranking_arena.main()
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["attack"], row["seeds"]) == ("sign_flip", 1)


def test_what_was_interrupted_is_not_kept(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path, 3)
    assert running.run([CELL], COMMON, Store.open(tmp_path, COMMON), 1, lambda now, ended: None, place=ledgers) == []
    assert ledgers.judged(CELL) is None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(CELL.name)]


def test_there_is_nothing_to_judge_again_without_ledgers(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["arena", "--again"])
    with pytest.raises(SystemExit):
        ranking_arena.main()
    assert "--again needs --ledgers" in capsys.readouterr().err
