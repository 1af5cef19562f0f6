"""The robustness table: its cells, how they run and resume, what is computed from them."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import robustness
from fedgpt2.errors import UsageError
from trials import page, running
from trials.cells import ABSENT, CONTROLS, NONE, SEEDS, Cell, plan, quick
from trials.running import Failed, condense
from trials.table import Result, ResultTable
from trials.twins import completed, differing, known_from_twin
from trials.verdicts import baseline, compared, control, judge, percent

ATTACKS = ("sign_flip", "alie", "ipm_100", "min_max", "scale", "zero")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def result(cell: Cell, loss: float | None, **row: object) -> Result:
    rows = [{"round": 1, "val_loss": loss, "applied": True, "reason": None, "hostile_share": 0.1, "cosine": 0.9, **row}]
    return Result(cell.name, loss, rows, 6.6, "abc", 30.0, 31.0, "two cores", {"hostile": [4, 5], "honest": [1, 2, 3]})


def results(**losses: float | None) -> dict[Cell, Result]:
    """A whole plan: attack-free cells end at 6.0 and 6.03, those in `losses` as named, all others at 6.06."""
    ends = {NONE: 6.03, ABSENT: 6.0, **losses}
    return {
        cell: result(cell, 7.0 if cell.rule == "mean" and cell.attack in CONTROLS else ends.get(cell.attack, 6.06))
        for cell in plan(ATTACKS)
    }


# cells


def test_the_plan_has_every_cell_once_and_references_first() -> None:
    cells = plan(ATTACKS)
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells})
    judged = [cell for cell in cells if cell.rule == "default" and cell.gate]
    assert {(cell.attack, cell.seed) for cell in judged} == {(a, s) for a in (*ATTACKS, NONE, ABSENT) for s in SEEDS}
    assert {cell.attack for cell in cells[: 2 * len(SEEDS)]} == {NONE, ABSENT}
    assert {cell.attack for cell in cells if cell.rule == "mean"} >= set(CONTROLS)
    for cell in cells:  # every cell has its references
        assert {Cell(cell.rule, cell.gate, name, cell.seed) for name in (NONE, ABSENT)} <= set(cells)


def test_the_quick_subset_is_small_and_has_a_control() -> None:
    cells = quick(ATTACKS)
    assert set(cells) <= set(plan(ATTACKS))
    assert len(cells) < 20
    assert Cell("mean", False, "sign_flip", SEEDS[0]) in cells


def test_flags_name_the_attack_and_the_rule() -> None:
    flags = " ".join(Cell("median", False, "alie", 2).flags())
    assert flags == (
        "--miners 12 --byzantine 3 --attack alie --run.seed 2 --aggregation.rule median --aggregation.gate false"
    )


# running

CELL = Cell("default", True, "alie", 1)
OUTPUT = {
    "settings": {"ranking": {"rule": "contribution"}},
    "final_val_loss": 6.5,
    "unigram_loss": 6.6,
    "rounds": [{"round": 1, "applied": True, "reason": None, "hostile_share": 0.0, "cosine": 1.0, "seconds": 0.1}],
    "miners": [
        {"hotkey": "a", "hostile": True, "rank": 2, "pay": 0.25},
        {"hotkey": "b", "hostile": False, "rank": 1, "pay": 0.75},
    ],
}


def test_a_table_keeps_whole_rows_only(tmp_path: Path) -> None:
    path, flags = tmp_path / "cells.jsonl", ["--rounds", "4"]
    other = Cell("default", True, "zero", 1)
    table = ResultTable.open(path, flags)
    assert table.get(CELL) is None
    table.add(result(CELL, 6.5))
    table.add(replace(result(other, None), rounds=[]))
    assert ResultTable.open(path, flags).rows == table.rows
    path.write_text(path.read_text()[:-3])  # as an interruption leaves it
    resumed = ResultTable.open(path, flags)
    assert resumed.finished([CELL, other]) == {CELL: result(CELL, 6.5)}
    resumed.add(result(other, 7.0))
    assert ResultTable.read(path).rows == resumed.rows
    with pytest.raises(UsageError, match="other flags"):
        ResultTable.open(path, ["--rounds", "5"])


@pytest.mark.parametrize("name", ["robustness", "ranking-arena-tokens-512"])
def test_recorded_tables_are_readable(name: str) -> None:
    table = ResultTable.read(BENCHMARKS / "results" / f"{name}.jsonl")
    assert len(table.rows) > 100
    assert all(row.commit and row.hardware and row.date for row in table.rows.values())


def test_the_output_of_a_process_becomes_a_result() -> None:
    found = condense(CELL, 0, json.dumps(OUTPUT), "", (1.0, 2.0))
    assert isinstance(found, Result)
    assert found.final_val_loss == 6.5
    assert found.rounds[0]["cosine"] == 1.0
    assert found.ranks == {"hostile": [2], "honest": [1]}
    assert (found.cpu_seconds, found.wall_seconds) == (1.0, 2.0)
    diverged = condense(CELL, 1, "", "the loss is nan: training has diverged; start again", (1.0, 2.0))
    assert isinstance(diverged, Result)
    assert diverged.final_val_loss is None
    assert condense(CELL, 2, "", "usage\n--attack: no such attack\n", (0.0, 0.0)) == Failed(
        CELL.name, "--attack: no such attack"
    )


def _replace_command(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Cells run `code` instead of a simulation."""
    monkeypatch.setattr(running, "command", lambda cell, common: ["-c", code, cell.name])


def test_cells_run_once_and_failures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import sys; sys.exit('no luck') if 'zero' in sys.argv[1] else print({json.dumps(OUTPUT)!r})"
    _replace_command(monkeypatch, code)
    table, cells, changes = ResultTable.open(tmp_path / "t", []), [CELL, Cell("default", True, "zero", 1)], []
    failed = running.run(cells, [], table, 2, lambda now, ended: changes.append((len(now), ended)))
    assert failed == [Failed("default-gate-zero-1", "no luck")]
    assert table.finished(cells).keys() == {CELL}
    assert max(count for count, _ in changes) == 2
    assert sum(ended is not None for _, ended in changes) == 2
    again = running.run([CELL], [], table, 2, lambda now, ended: pytest.fail("it ran twice"))
    assert again == []


def test_a_cell_that_takes_too_long_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_LIMIT", 0.3)
    _replace_command(monkeypatch, "import time; time.sleep(60)")
    cells = [CELL, Cell("default", True, "zero", 1)]
    failed = running.run(cells, [], ResultTable.open(tmp_path / "t", []), 2, lambda now, ended: None)
    assert {(each.name, each.error) for each in failed} == {(cell.name, "exit code -9") for cell in cells}


def test_an_interruption_ends_running_cells_and_keeps_the_finished(tmp_path: Path) -> None:
    script = (
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits it ignored
        "from pathlib import Path\n"
        "from trials import running\nfrom trials.cells import Cell\nfrom trials.table import ResultTable\n"
        "running.command = lambda cell, common: ['-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
        "table = ResultTable.open(Path(sys.argv[2]), [])\n"
        "on_change = lambda now, ended: print('begun', flush=True)\n"
        "running.run([Cell('default', True, 'alie', 1)], [], table, 1, on_change)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(BENCHMARKS), str(tmp_path / "table.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert time.monotonic() - began < 20, "the cell was not ended"
    assert ResultTable.read(tmp_path / "table.jsonl").rows == {}


# twins


def test_a_run_without_the_gate_is_known_where_the_gate_never_acted() -> None:
    bare = Cell("default", False, "alie", 1)
    assert not known_from_twin(bare, {}), "not known yet"
    assert known_from_twin(bare, {CELL: result(CELL, 6.1)})
    assert not known_from_twin(bare, {CELL: result(CELL, 6.1, reason="halved")})
    assert not known_from_twin(bare, {CELL: result(CELL, 6.1, applied=False, reason="loss_gate")})
    assert not known_from_twin(CELL, {CELL: result(CELL, 6.1)}), "it has a gate"
    reference = Cell("default", False, NONE, 1)
    assert not known_from_twin(reference, {reference.twin: result(reference.twin, 6.0)}), "run as a check"


def test_a_twin_replaces_a_cell_that_did_not_run() -> None:
    bare = Cell("default", False, "alie", 1)
    found = completed({CELL: result(CELL, 6.1)}, [CELL, bare])
    assert found[bare] == found[CELL]
    assert differing(found) == []
    found[bare] = result(bare, 6.1, cosine=0.5)
    assert differing(found) == [bare.name]


def test_a_known_cell_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace_command(monkeypatch, "raise SystemExit('it ran')")
    table = ResultTable.open(tmp_path / "t", [])
    assert running.run([CELL], [], table, 1, lambda now, ended: None, lambda cell: True) == []


# verdicts


def test_the_judged_reference_is_the_lower_and_the_controls_the_higher() -> None:
    found = results()
    assert baseline(found, CELL) == 6.0
    assert control(found, "sign_flip").ratio == pytest.approx(7.0 / 6.03)
    assert math.isnan(baseline({}, CELL))
    assert control({}, "sign_flip") is None


def test_an_attack_within_its_limit_holds() -> None:
    row = next(row for row in judge(results(), ATTACKS) if row.attack == "alie")
    assert row.worst == pytest.approx(1.01)
    assert row.alone == pytest.approx(1.01)
    assert (row.share, row.cosine) == (pytest.approx(0.1), pytest.approx(0.9))
    assert (row.holds, row.verdict) == (True, "holds")


@pytest.mark.parametrize(("attack", "loss", "holds"), [("alie", 6.2, False), ("min_max", 6.2, True)])
def test_adaptive_attacks_have_a_wider_limit(attack: str, loss: float, holds: bool) -> None:
    row = next(row for row in judge(results(**{attack: loss}), ATTACKS) if row.attack == attack)
    assert row.holds is holds


def test_what_only_the_gate_stopped_is_said() -> None:
    found = results()
    bare = Cell("default", False, "zero", SEEDS[0])
    found[bare] = result(bare, None)
    row = next(row for row in judge(found, ATTACKS) if row.attack == "zero")
    assert row.holds
    assert row.verdict == "holds; only the gate stopped it"
    assert percent(row.bare.ratio) == "diverged"


def test_a_control_that_does_not_hurt_voids_its_row() -> None:
    found = results()
    mean = Cell("mean", False, "scale", SEEDS[0])
    found[mean] = result(mean, 6.1)
    row = next(row for row in judge(found, ATTACKS) if row.attack == "scale")
    assert not row.holds
    assert row.verdict == "void: the mean ended at +1.2 % too"


def test_a_row_without_all_seeds_does_not_hold() -> None:
    found = results()
    del found[Cell("default", True, "zero", SEEDS[2])]
    row = next(row for row in judge(found, ATTACKS) if row.attack == "zero")
    assert (row.holds, row.verdict) == (False, "holds, 1 of 3 seeds not run")
    assert judge({}, ["zero"])[0].verdict == "not run"
    del found[Cell("default", True, NONE, SEEDS[1])], found[Cell("default", False, NONE, SEEDS[0])]
    row = next(row for row in judge(found, ATTACKS) if row.attack == "alie")
    assert (row.holds, row.verdict) == (False, "nothing to compare with")


def test_rounds_without_a_step_count_apart() -> None:
    found = results()
    found[CELL] = result(CELL, 6.06, applied=False, hostile_share=None, cosine=None)
    measured = next(row for row in judge(found, ATTACKS) if row.attack == "alie").seeds[0]
    assert (measured.kept, measured.share, measured.cosine) == (1, None, None)


# the record


def test_the_record_is_json_and_holds_only_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "NAMES", ATTACKS)
    found = results()
    document = json.loads(json.dumps(robustness.summary(found, ["--rounds", "2"]), allow_nan=False))
    assert document["holds"]
    assert document["cells"] == len(found)
    assert [row["attack"] for row in document["rows"]] == list(ATTACKS)
    assert {each["attack"] for each in document["controls"]} == set(CONTROLS)


@pytest.mark.parametrize(
    "worse",
    [
        {Cell("default", True, "alie", 2): None},
        {Cell("default", True, name, 2): 6.7 for name in (NONE, ABSENT)},  # above the unigram
        {Cell("mean", False, "scale", 1): 6.1},
    ],
    ids=["a limit broken", "nothing learned", "a control void"],
)
def test_the_record_does_not_hold(worse: dict[Cell, float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "NAMES", ATTACKS)
    found = {**results(), **{cell: result(cell, loss) for cell, loss in worse.items()}}
    assert not json.loads(json.dumps(robustness.summary(found, []), allow_nan=False))["holds"]


def test_the_tables_are_written_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "NAMES", ATTACKS)
    monkeypatch.setattr(robustness, "PAGE", tmp_path / "aggregation.md")
    robustness.PAGE.write_text(f"above\n{page.BEGIN}\n{page.END}\nbelow\n")
    document = robustness.summary(results(), ["--rounds", "2"])
    robustness.write(document, results(), ["--rounds", "2"])
    assert f"Cells of commits {', '.join(document['cell_commits'])}, " in robustness.PAGE.read_text()  # not HEAD
    assert robustness.PAGE.read_text().startswith("above\n")


def test_the_page_has_its_markers() -> None:
    text = (BENCHMARKS.parent / "docs" / "aggregation.md").read_text()
    assert page.insert(text, "new").count("new") >= 1


# page


def test_the_tables_go_between_the_markers() -> None:
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    assert page.insert(text, "new") == f"before\n{page.BEGIN}\nnew\n{page.END}\nafter\n"
    with pytest.raises(ValueError, match="once each"):
        page.insert("no markers", "new")


def test_the_page_has_every_attack_and_rule() -> None:
    found = results()
    about = dict.fromkeys(("before", "flags", "commits", "date", "hardware", "minutes"), "?")
    held = [control(found, attack) for attack in CONTROLS]
    references = [{"rule": "default", "gate": True, "seed": 1, "unigram": 6.6, "none": 6.03, "absent": 6.0}]
    text = page.section(judge(found, ATTACKS), compared(found), references, held, about)
    assert "| alie | +1.0 % | +1.0 % | 0.10 | 0.90 | 0 / 0 | +1.0 % | holds |" in text
    assert "| default | on | 1 | 6.600 | 6.030 | 6.000 |" in text
    assert "| krum |" in text
    assert "| sign_flip | +16.1 % | hurts |" in text
    assert not any(len(row) != len(head) for head, row in _tables(text))


def _tables(text: str) -> list[tuple[list[str], list[str]]]:
    """Each row of each table with its head."""
    pairs, head = [], None
    for line in text.splitlines():
        cells = line.split("|") if line.startswith("|") else None
        head = (head or cells) if cells else None
        if cells and head:
            pairs.append((head, cells))
    return pairs
