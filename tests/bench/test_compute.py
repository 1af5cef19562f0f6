"""The compute bench: its candidates agree, its arithmetic is right, its workers run."""

import importlib.util
import json

import numpy as np
import pytest

from fedgpt2.cli.bench import compute
from fedgpt2.cli.bench.compute import Batch, Field, run
from fedgpt2.cli.bench.compute_worker import Ours, Transformers
from fedgpt2.cli.bench.worker import Worker
from fedgpt2.config import PRESETS
from fedgpt2.errors import UsageError
from fedgpt2.model import hardware
from fedgpt2.model.gpt2 import initialise

TINY = PRESETS["tiny"]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "weights.bin").write_bytes(initialise(TINY, 0).memory())
    windows = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 33))
    np.save(tmp_path / "tokens.npy", windows)
    np.save(tmp_path / "steps.npy", np.stack([windows] * 5))
    return tmp_path


@pytest.fixture
def quiet_machine(monkeypatch):
    """Candidates leave this process's threads and allocator alone."""
    module = "fedgpt2.cli.bench.compute_worker"
    monkeypatch.setattr(f"{module}.prepare", lambda _device: initialise(TINY, 0).device)
    monkeypatch.setattr(f"{module}.set_threads", lambda _threads: None)


@pytest.mark.usefixtures("quiet_machine")
@pytest.mark.parametrize("bf16", [False, True])
def test_candidates_give_the_same_gradient(files, bf16):
    loss = {}
    for name, candidate in {
        "ours": Ours(TINY, "bf16" if bf16 else "fp32"),
        "theirs": Transformers(TINY, "sdpa", bf16=False),
    }.items():
        candidate.load(str(files / "weights.bin"))
        loss[name] = candidate.gradient(str(files / "tokens.npy"))
        candidate.save(str(files / name))
    whole, worst = compute._cosines(TINY, files / "ours", files / "theirs")
    assert loss["ours"] == pytest.approx(loss["theirs"], rel=1e-3)
    assert whole >= 0.999
    assert worst >= (0.99 if bf16 else 0.99999)


@pytest.mark.usefixtures("quiet_machine")
def test_training_lowers_the_loss_and_leaves_the_weights(files):
    ours = Ours(TINY, "fp32")
    ours.load(str(files / "weights.bin"))
    losses = ours.train(str(files / "steps.npy"), 0.01, str(files / "trained.bin"))
    assert losses["last"] < losses["first"]
    assert (files / "trained.bin").read_bytes() == bytes(ours.model.weights.memory())


def test_a_candidate_runs_in_its_own_process(files):
    with Worker.start("fedgpt2", compute._MODULE, "fedgpt2", "tiny") as worker:
        worker("load", path=str(files / "weights.bin"))
        loss = worker("gradient", path=str(files / "tokens.npy"))["loss"]
        assert loss == pytest.approx(np.log(TINY.vocab_size), rel=0.01)
        assert 50 < worker("peak")["peak_mb"] < 2000


def test_flops_are_those_of_the_published_count():
    assert Batch(8, 256).flops(PRESETS["small"]) == pytest.approx(1.576e12, rel=1e-3)


class FakeWorker:
    """Answers at once; gradients are the weights it was given, plus one."""

    def __init__(self, name, **_):
        self.name = name

    def __call__(self, command, **arguments):
        if command == "load":
            self.weights = np.fromfile(arguments["path"], np.float32) + 1  # no tensor is zero
        if command == "save":
            self.weights.tofile(arguments["path"])
        if command == "train":
            (self.weights + 1).tofile(arguments["to"])
        return {"peak_mb": 100.0, "loss": 1.0}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_report_carries_every_row_and_target(precision, steps, monkeypatch, capsys):
    monkeypatch.setattr(Worker, "start", lambda name, *_, **__: _Nothing(FakeWorker(name)))
    monkeypatch.setattr(hardware, "native_precision", lambda _device: precision)
    assert run("tiny", 2, True, tokens=128, steps=steps) == 0
    document = json.loads(capsys.readouterr().out)
    field = Field(precision)
    assert [row["name"] for row in document["rows"]] == [*field.candidates, *field.limits]
    assert document["rows"][0]["cosine_initial"] == pytest.approx(1.0)
    assert ("cosine_trained" in document["rows"][0]) == (steps > 0)
    assert f"fedgpt2/transformers.sdpa.{precision}" in document["ratios"]
    assert all(row["share_of_limit"] > 0 for row in document["rows"])
    targets = sum("target" in note for note in document["notes"])
    assert targets == (5 if precision == "bf16" else 3) + (steps > 0)
    assert any("everything is fp32" in note for note in document["notes"]) == (precision == "fp32")
    bare = 1 / document["ratios"][f"limit.{precision}/transformers.fp32"]
    ceiling = f"the bare matmuls, limit.{precision}, would be {bare:.2f}x as fast as transformers.fp32"
    assert ceiling in document["notes"]


def test_where_bf16_is_emulated_nobody_computes_in_it():
    names = [*Field("fp32").candidates, *Field("fp32").limits]
    assert names == [
        "fedgpt2",
        "transformers.fp32",
        "transformers.sdpa.fp32",
        "transformers.sdpa.fp32.malloc",
        "limit.fp32",
    ]


class _Nothing:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("settings", [{"tokens": 63}, {"repeats": 0}, {"steps": -1}, {"preset": "huge"}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UsageError):
        run(**{"preset": "tiny", "repeats": 1, "as_json": True, **settings})


def test_without_transformers_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="pip install 'transformers"):
        run("tiny", 1, True)
