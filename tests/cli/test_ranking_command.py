"""`fedgpt2 ranking`: the table, a miner's rounds, replays, and an edited ledger."""

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from fedgpt2.cli import main as entry
from fedgpt2.cli.ranking import changes_of
from fedgpt2.errors import UsageError
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.table import ranks
from tests.cli.conftest import environment
from tests.ranking.runs import SENDER, edit, write_run
from tests.ranking.worlds import noisy_rounds, refused, with_evidence

GOOD, POOR, HOSTILE = "5Good", "5Poor", "5Hostile"
FIELDS = {"hotkey", "rank", "rating", "sigma", "weight", "reliability", "refusals"}


def world(rounds: int = 10) -> list[RoundRecord]:
    quality = {GOOD: 4.0, "5Fair": 2.0, POOR: 1.0}
    return [
        msgspec.structs.replace(each, miners=(*each.miners, refused(HOSTILE, "norm_bound")))
        for each in noisy_rounds(quality, rounds)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", world())
    return tmp_path / "run"


def asked(run: Path, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert entry.main(["ranking", "--run.dir", str(run), *words]) == code
    said = capsys.readouterr()
    return said.out if code == 0 or said.out else said.err


def test_the_table_is_printed_best_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = asked(run, capsys).splitlines()
    assert lines[0] == "Ranking after round 10"
    assert [line.split()[1] for line in lines[3:]] == [GOOD, "5Fair", POOR, HOSTILE]
    assert all("±" in line for line in lines[3:])
    assert lines[-1].split()[-1] == "10"


def test_json_has_the_fields_of_the_contract(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(asked(run, capsys, "--json"))
    assert answer["round"] == 10
    assert all(set(miner) >= FIELDS for miner in answer["miners"])
    assert [miner["rank"] for miner in answer["miners"]] == [1, 2, 3, 4]
    assert answer["miners"][-1] == {**answer["miners"][-1], "hotkey": HOSTILE, "refusals": 10, "weight": 0.0}


def test_a_replay_is_the_live_table_to_the_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live, again = json.loads(asked(run, capsys, "--json")), json.loads(asked(run, capsys, "--json", "--replay"))
    assert again["miners"] == live["miners"]
    assert again["replay"] == {"rounds": 10, "other_revision": [], "changes": {}, "differences": []}
    assert "every score, rating and pay equals the recorded one, to the bit" in asked(run, capsys, "--replay")


def test_a_replay_says_where_another_revision_of_the_rule_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = noisy_rounds({GOOD: 4.0, POOR: 1.0}, 3)
    write_run(tmp_path, [with_evidence(rounds[0], revision=1), *rounds[1:]])
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("DELETE FROM ratings")
    db.close()
    assert json.loads(asked(tmp_path, capsys, "--json", "--replay"))["replay"]["other_revision"] == [1]


@pytest.mark.parametrize("sql", ["DELETE FROM ratings"])
def test_it_works_without_the_ratings(run: Path, capsys: pytest.CaptureFixture[str], sql: str) -> None:
    live = asked(run, capsys, "--json")
    with sqlite3.connect(run / "ledger.sqlite") as db:
        db.execute(sql)
    db.close()
    assert asked(run, capsys, "--json") == live
    assert json.loads(asked(run, capsys, "--json", "--replay"))["replay"]["differences"] == []


def test_other_settings_are_ranked_by_and_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--set", "ranking.tau=2", "ranking.memory=9"], ["--set", "ranking.tau=2", "--set=ranking.memory=9"]):
        answer = json.loads(asked(run, capsys, "--replay", "--json", *words))
        assert answer["replay"]["changes"] == {"tau": 2.0, "memory": 9}
        assert answer["replay"]["differences"]
    said = asked(run, capsys, "--replay", "--set", "ranking.tau=2", "--set", "ranking.memory=9")
    assert "With ranking.tau=2.0, ranking.memory=9 instead of the run's settings:" in said
    assert asked(run, capsys, "--json") == asked(run, capsys, "--json")  # nothing was written


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("ranking.taw=1", "did you mean ranking.tau"),
        ("tau=1", "not a setting of ranking"),
        ("ranking.tau", "as in ranking.tau=VALUE"),
        ("ranking.tau=x", "not a value of ranking.tau"),
        ("ranking.tau=nan", "not a finite number"),
        ("ranking.memory=0", "at least 1"),
        ("ranking.power=9", "at most 8"),
        ("ranking.tokens=5", "cannot measure again"),
        ("ranking.rule=off", "cannot measure again"),
    ],
)
def test_an_unknown_setting_or_a_wrong_value_is_refused(word: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        changes_of([word])


def test_set_needs_replay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "add --replay" in asked(run, capsys, "--set", "ranking.tau=1", code=2)


def test_one_miners_rounds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = asked(run, capsys, "--miner", "5Ho").splitlines()
    assert lines[0] == f"Rounds of {HOSTILE}"
    assert len(lines) == 3 + 10
    assert "fault norm_bound" in lines[-1]
    answer = json.loads(asked(run, capsys, "--miner", GOOD, "--json"))
    assert answer["hotkey"] == GOOD
    assert [row["round"] for row in answer["rounds"]] == list(range(1, 11))
    ratings = [(row["rating_before"], row["rating_after"]) for row in answer["rounds"]]
    assert all(ratings[i][1] == ratings[i + 1][0] for i in range(9))
    assert "4 hotkeys of this run start with it" in asked(run, capsys, "--miner", "5", code=2)
    assert "no hotkeys of this run start with it" in asked(run, capsys, "--miner", "6", code=2)


def test_an_edited_row_is_found_and_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run, 4, lambda row: row["evidence"]["products"]["gradient"].__setitem__(0, 9.0))
    for words in ([], ["--replay"], ["--json"], ["--miner", GOOD]):
        said = asked(run, capsys, *words, code=1)
        assert "was edited: entry 4 (round 4) does not follow from the chain" in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE entries SET kind = 'resume' WHERE seq = 4",
        "UPDATE entries SET round = 9 WHERE seq = 4",
        "DELETE FROM entries WHERE seq = 4",
    ],
)
def test_so_is_one_whose_place_was_changed(run: Path, capsys: pytest.CaptureFixture[str], sql: str) -> None:
    with sqlite3.connect(run / "ledger.sqlite") as db:
        db.execute(sql)
    db.close()
    assert "was edited: entry" in asked(run, capsys, code=1)


def test_a_whole_new_chain_does_not_hold_a_receipts_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "true", world())
    ledger = Ledger(tmp_path / "true" / "ledger.sqlite")
    head = ledger.head
    ledger.close()
    other = world()[:9]
    write_run(tmp_path / "other", other)
    assert asked(tmp_path / "true", capsys, "--head", head)
    assert "was rewritten" in asked(tmp_path / "other", capsys, "--head", head, code=1)


def test_recorded_numbers_that_do_not_follow_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A validator that forged its own records, and chained them properly."""
    folder = tmp_path / "forged"
    table = write_run(folder, world(3), keep=False)
    ledger = Ledger(folder / "ledger.sqlite")
    last = [*ledger.records()][-1]
    miners = (msgspec.structs.replace(last.miners[0], rating=40.0), *last.miners[1:])
    ledger.commit_resume(2, 1)
    ledger.commit_round(msgspec.structs.replace(last, attempt=1, miners=miners), sender=SENDER)
    ledger.close()
    said = asked(folder, capsys, "--replay", code=1)
    assert "1 number differs" in said
    assert f"round 3 {GOOD} rating: 40.0 recorded" in said
    assert ranks(table)[0].hotkey == GOOD


def test_ratings_of_rounds_that_were_taken_back_are_not_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(run / "ledger.sqlite")
    ledger.commit_resume(6, 1)
    assert ledger.ratings() is None
    ledger.close()
    assert json.loads(asked(run, capsys, "--json"))["round"] == 6


def test_a_run_without_evidence_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "new", [])
    assert "no round was ranked yet" in asked(tmp_path / "new", capsys, code=1)
    assert "holds no run" in asked(tmp_path / "nothing", capsys, code=1)


def test_help_is_quick_and_heavy_imports_wait() -> None:
    began = time.monotonic()
    code = (
        "import sys; from fedgpt2.cli.main import main; main(['ranking', '--help']); assert 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--replay" in done.stdout
    assert time.monotonic() - began < 10
