"""Ledgers of the arena's runs: kept when whole, and replayed to the ranks of their run."""

import json
import shutil
from pathlib import Path

import pytest

import ranking_arena
from trials import running
from trials.cells import Cell
from trials.ledgers import KeptLedgers
from trials.table import ResultTable

CELL = Cell("default", True, "sign_flip", 2)
COMMON = (
    *("--model.preset", "tiny", "--data.source", "sample", "--data.windows", "1", "--run.threads", "1"),
    *("--ranking.tokens", "64", "--run.eval_windows", "2", "--run.score_windows", "1"),
    *("--optimizer.horizon", "2", "--rounds", "2"),
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeptLedgers, ResultTable]:
    """One run of two rounds, with its ledger kept."""
    folder = tmp_path_factory.mktemp("arena")
    ledgers, table = KeptLedgers(folder / "ledgers", 2), ResultTable.open(folder / "table.jsonl", COMMON)
    ledgers.prepare([2], pytest.fail)
    assert ledgers.replayed(CELL) is None
    assert running.run([CELL], COMMON, table, 1, lambda now, ended: None, directories=ledgers) == []
    return ledgers, table


def test_a_kept_ledger_is_ranked_as_its_run_was(
    ran: tuple[KeptLedgers, ResultTable], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    ledgers, table = ran
    assert [path.name for path in ledgers.folder.iterdir()] == [f"{CELL.name}.sqlite"]
    first, again = table.get(CELL), ledgers.replayed(CELL)
    assert first is not None
    assert again is not None
    assert (again.ranks, again.pay) == (first.ranks, first.pay)
    assert len(first.ranks["hostile"]) == 3
    monkeypatch.setattr("sys.argv", f"arena --ledgers {ledgers.folder} --again --seeds 1 2 --json".split())
    ranking_arena.main()
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["attack"], row["seeds"]) == ("sign_flip", 1)


def test_an_interrupted_run_leaves_no_ledger(ran: tuple[KeptLedgers, ResultTable], tmp_path: Path) -> None:
    longer = KeptLedgers(tmp_path, 3)
    longer.flags(CELL)
    (tmp_path / f"{CELL.name}.run").mkdir()
    shutil.copy(ran[0].folder / f"{CELL.name}.sqlite", tmp_path / f"{CELL.name}.run" / "ledger.sqlite")
    longer.release(CELL)
    assert longer.replayed(CELL) is None
    assert not list(tmp_path.iterdir())


def test_again_needs_ledgers(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["arena", "--again"])
    with pytest.raises(SystemExit):
        ranking_arena.main()
    assert "--again needs --ledgers" in capsys.readouterr().err
