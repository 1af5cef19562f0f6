"""The transport and round benches: what they print, and that every side really runs."""

import json

import pytest

from fedgpt2.cli.bench import round as round_bench
from fedgpt2.cli.bench import transport
from fedgpt2.cli.bench.report import Row
from fedgpt2.cli.bench.round import run as run_round
from fedgpt2.cli.bench.transport import run
from fedgpt2.errors import UsageError


def test_transport_prints_every_row_with_its_share_and_memory(capsys):
    assert run("tiny", 1, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in printed["rows"]}
    assert printed["bench"] == "transport"
    assert set(rows) == {f"{name}{n}" for name in ("fedgpt2", "aiohttp", "tcp", "memcpy") for n in ("", ".2")}
    assert {"fedgpt2/aiohttp", "fedgpt2/tcp", "fedgpt2.2/aiohttp.2", "fedgpt2.2/tcp.2"} <= set(printed["ratios"])
    assert all(row["seconds"]["min"] > 0 and row["share_of_limit"] > 0 for row in rows.values())
    for side in ("validator", "miner"):
        assert rows["fedgpt2.2"][f"{side}_peak_mb"] > 50
        assert rows["fedgpt2.2"][f"{side}_limit_mb"] > 50
    assert rows["tcp"]["share_of_limit"] == pytest.approx(
        rows["memcpy"]["seconds"]["median"] / rows["tcp"]["seconds"]["median"], abs=1e-3
    )
    assert any("target 0.7" in note and "target 3.0" in note for note in printed["notes"])


def test_shares_are_of_tcp_and_tcp_s_of_memcpy():
    seconds = {"memcpy": [1.0], "tcp": [2.0], "aiohttp": [8.0], "memcpy.2": [2.0], "tcp.2": [8.0], "aiohttp.2": [8.0]}
    shares = {row.name: row.extra["share_of_limit"] for row in transport._rows(seconds, {}, {})}
    assert shares == {"memcpy": 1.0, "tcp": 0.5, "aiohttp": 0.25, "memcpy.2": 1.0, "tcp.2": 0.25, "aiohttp.2": 1.0}


def test_peaks_of_our_rows_stand_beside_what_they_may_be():
    rows = transport._rows(
        {"fedgpt2": [1.0], "tcp": [1.0], "memcpy": [1.0]},
        {"fedgpt2": (30.0, 20.0)},
        {"validator": 31.0, "miner": 19.0},
    )
    assert rows[0] == Row("fedgpt2", [1.0], 30.0, rows[0].extra)
    assert rows[0].extra["validator_limit_mb"] == 31.0
    assert rows[0].extra["miner_limit_mb"] == 19.0
    assert "validator_limit_mb" not in rows[1].extra


def test_an_unknown_preset_is_one_line():
    for bench in (run, run_round):
        with pytest.raises(UsageError, match="no such preset"):
            bench("huge", 1, as_json=True)


def test_a_round_is_told_in_phases_beside_its_computing_alone(capsys, monkeypatch):
    monkeypatch.setattr(round_bench, "_TOKENS", 256)
    assert run_round("tiny", 1, as_json=True) == 0
    printed = json.loads(capsys.readouterr().out)
    ours, alone = printed["rows"]
    assert (printed["bench"], ours["name"], alone["name"]) == ("round", "fedgpt2", "compute")
    phases = ("send", "wait", "receive", "admit", "rank", "aggregate", "step", "checkpoint")
    assert sum(ours[f"{phase}_s"] for phase in phases) <= 3 * ours["seconds"]["max"]
    assert printed["ratios"]["fedgpt2/compute"] > 0
    assert ours["validator_peak_mb"] > 50
    assert "its computing alone" in printed["notes"][-1]
