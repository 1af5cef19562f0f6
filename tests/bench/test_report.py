"""What the benches share: turns, ratios, the shape of the report, worker processes."""

import json

import pytest

from fedgpt2.cli.bench.report import Row, commit, hardware, interleave, ratios, report
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.errors import FedGPT2Error

ROWS = [Row("fedgpt2", [1.0, 2.0, 4.0], 100.0, {"share": 0.5}), Row("peer", [2.0, 2.0, 2.0], 250.0)]


def test_candidates_take_turns_and_the_first_round_is_not_measured():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, 2)
    assert "".join(calls) == "abc" + "abc" + "bca"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_what_surrounds_a_measurement_is_called_with_its_name():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    interleave(
        candidates,
        1,
        before=lambda name: calls.append(f"<{name}"),
        after=lambda name: calls.append(f"{name}>"),
    )
    assert calls == ["<a", "a", "a>", "<b", "b", "b>"]


def test_a_ratio_is_the_median_of_the_turns():
    assert ratios(ROWS) == {"fedgpt2/peer": 1.0, "peer/fedgpt2": 1.0}
    assert ratios([ROWS[0], Row("once", [1.0], 1.0)]) == {}


def test_json_has_the_published_shape(capsys):
    report("demo", ROWS, as_json=True, notes=["a note"])
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"bench", "commit", "hardware", "rows", "ratios", "notes"}
    assert document["bench"] == "demo"
    assert document["rows"][0] == {
        "name": "fedgpt2",
        "seconds": {"min": 1.0, "median": 2.0, "max": 4.0},
        "peak_mb": 100.0,
        "share": 0.5,
    }


def test_the_table_shows_rows_extras_and_notes(capsys):
    report("demo", ROWS, as_json=False, notes=["a note"])
    out = capsys.readouterr().out
    assert "demo: commit" in out
    assert "peer" in out
    assert "fedgpt2: share 0.5" in out
    assert "a note" in out


def test_the_machine_and_the_commit_are_one_line_each():
    assert "cores" in hardware()
    assert "\n" not in hardware()
    assert commit()
    assert "\n" not in commit()


def test_the_machine_is_told_from_its_namesakes(tmp_path, monkeypatch):
    known = tmp_path / "cpuinfo"
    monkeypatch.setattr("fedgpt2.cli.bench.report._CPUINFO", known)
    known.write_text(
        "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t: fpu avx512_bf16\n\nprocessor : 1\n"
    )
    assert hardware().startswith("AMD EPYC (family 25 model 17), ")
    assert "avx512_bf16" in hardware()
    known.unlink()
    assert hardware().startswith("unknown CPU, ")


def test_the_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"


def test_a_worker_answers_and_says_why_it_died():
    with Worker.start("echo", "tests.bench.echo_worker") as worker:
        assert worker("double", value=21) == {"value": 42}
        assert worker("prints") == {}
        with pytest.raises(FedGPT2Error, match="candidate echo ended: RuntimeError: the last word"):
            worker("fails")
        with pytest.raises(FedGPT2Error, match="ended"):
            worker("double", value=1)
