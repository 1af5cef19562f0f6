"""The aggregation bench: its contributions, its candidates, what it compares with what."""

import json
import sys

import numpy as np
import pytest
import torch

from fedgpt2.aggregation.registry import RULES
from fedgpt2.cli.bench import aggregation, aggregation_worker
from fedgpt2.cli.bench.byzfl_rules import byzfl_rules, installed
from fedgpt2.cli.bench.report import Row, ratios
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.errors import DiskFullError, SetupError, UsageError


def test_contributions_are_a_signal_noise_and_a_quarter_of_flipped_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(aggregation, "_CHUNK", 7000)
    aggregation._spool(tmp_path, 20_000)
    rows = np.stack([np.fromfile(tmp_path / f"{i}.bin", np.float32) for i in range(16)])
    assert rows.shape == (16, 20_000)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.sqrt(10 * 20_000), rel=0.03)
    between = np.corrcoef(rows)
    assert between[4:, 4:][~np.eye(12, dtype=bool)] == pytest.approx(0.1, abs=0.05)
    assert between[:4, 4:] == pytest.approx(-0.1, abs=0.05)


def test_every_pipeline_is_a_candidate_and_runs():
    candidates = aggregation_worker.fedgpt2_candidates(list(torch.randn(6, 50)))
    assert set(candidates) == {"read", *RULES.names}
    for run in candidates.values():
        run()
    assert list(candidates) == list(aggregation._OURS)


def test_a_candidate_is_measured_in_its_own_process(tmp_path):
    aggregation._spool(tmp_path, 1 << 18)
    rows = aggregation._measure(tmp_path, 1 << 18, 1, ("mean", "default"), (), "")
    assert [row.name for row in rows] == ["mean", "default"]
    assert all(row.seconds[0] > 0 for row in rows)
    assert all(row.extra["memory_per_contributions"] > 0.8 for row in rows)


class FakeWorker:
    """Takes as long as its rule's name has letters, and says what it was told to open."""

    def __init__(self, *opened: str) -> None:
        self.opened = opened

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, command: str, name: str) -> dict[str, float]:
        return {"seconds": float(len(name)), "peak_mb": 300.0, "base_mb": 200.0}


@pytest.mark.parametrize("byzfl", [False, True])
@pytest.mark.parametrize("peer_d", [1_000_000_000, 100_000])
def test_the_report_compares_only_what_did_the_same_work(byzfl, peer_d, monkeypatch, capsys):
    opened = []

    def start(name, *arguments, **_):
        opened.append((name, int(arguments[-1])))
        return FakeWorker()

    monkeypatch.setattr(Worker, "start", start)
    monkeypatch.setattr(aggregation, "_spool", lambda folder, d: None)
    monkeypatch.setattr(aggregation, "_peer_d", lambda: peer_d)
    monkeypatch.setattr(aggregation, "installed", lambda: byzfl)
    assert aggregation.run("tiny", 2, True) == 0
    document = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in document["rows"]]
    assert len(set(names)) == len(names)
    assert names[: len(aggregation._OURS)] == list(aggregation._OURS)
    sizes = {row["name"]: row["d"] for row in document["rows"]}
    d = sizes["default"]
    assert document["ratios"]["default/mean"] == pytest.approx(7 / 4)
    assert ("default/byzfl.krum" in document["ratios"]) == byzfl
    if byzfl:
        assert document["ratios"]["krum/byzfl.krum"] == 1.0
        assert sizes["byzfl.krum"] == min(d, peer_d)
        assert ("default@0.1M" in names) == (peer_d < d)
        assert set(opened) == {("fedgpt2", d), ("fedgpt2", min(d, peer_d)), ("byzfl", min(d, peer_d))}
    else:
        assert set(opened) == {("fedgpt2", d)}
        assert "pip install --no-deps byzfl" in document["notes"][-1]
    assert sum("target" in note for note in document["notes"]) == (4 if byzfl else 3)


def test_rows_of_another_group_are_not_compared():
    rows = [
        Row("mean", [1.0], 1.0),
        Row("default", [3.0], 1.0),
        Row("mean@1M", [2.0], 1.0, group="1M"),
        Row("default@1M", [5.0], 1.0, group="1M"),
        Row("peer", [10.0], 1.0, group="1M"),
    ]
    found = ratios(rows)
    assert found["default/mean"] == 3.0
    assert found["default/peer"] == 0.5
    assert found["peer/mean"] == 5.0
    assert len(found) == 6


def test_a_disk_too_small_is_said_before_anything_is_written(monkeypatch, tmp_path):
    with pytest.raises(DiskFullError, match="set TMPDIR"):
        aggregation._need(tmp_path, 1 << 60)
    monkeypatch.setattr(aggregation, "_spool", lambda folder, d: pytest.fail("written"))
    with pytest.raises(UsageError, match="no such preset"):
        aggregation.run("huge", 1, True)


def test_byzfl_is_given_no_more_values_than_memory_holds():
    assert 0 < aggregation._peer_d() <= 10_000_000


@pytest.fixture
def fake_byzfl(tmp_path, monkeypatch):
    """A package that cannot be imported as a whole, as byzfl cannot without what it asks for."""
    folder = tmp_path / "byzfl"
    (folder / "aggregators").mkdir(parents=True)
    (folder / "__init__.py").write_text("import torchvision_that_is_not_there\n")
    names = ("Average", "Median", "TrMean", "Krum", "MultiKrum", "GeometricMedian", "NNM", "ARC", "Clipping")
    (folder / "aggregators" / "__init__.py").write_text(
        "from scipy.spatial import distance\n"
        "class Rule:\n"
        "    def __init__(self, *settings): pass\n"
        "    def __call__(self, rows): return rows if type(self).keeps else rows.mean(0)\n"
        + "".join(f"class {name}(Rule): keeps = {name in ('NNM', 'ARC', 'Clipping')}\n" for name in names)
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.startswith(("byzfl", "scipy")):
            del sys.modules[name]


@pytest.mark.usefixtures("fake_byzfl")
def test_byzfls_rules_are_reached_past_what_it_cannot_import():
    assert installed()
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    rules = byzfl_rules(f=0, clip=1.0)
    assert set(aggregation._PEERS) <= set(rules)
    assert all(rule(rows).tolist() == [2.0, 4.0] for rule in rules.values())
    assert set(aggregation_worker.peers(list(rows))) == set(rules)


def test_without_byzfl_it_says_how_to_get_it():
    if installed():
        pytest.skip("byzfl is here")
    with pytest.raises(SetupError, match="pip install --no-deps byzfl"):
        byzfl_rules(f=1, clip=1.0)
