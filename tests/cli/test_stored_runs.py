"""What `sample`, `export` and `ranking` read of a run directory: the weights that were broadcast."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedgpt2.cli import main as entry
from fedgpt2.cli.runs import open_model, open_run
from fedgpt2.config import Codec, Data, Model, ValidatorConfig
from fedgpt2.config import Run as RunConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import CheckpointError
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.digests import model_digest
from fedgpt2.types import Hotkey
from fedgpt2.validator.run_directory import open_run_directory
from fedgpt2.validator.training import Training
from tests.records import round_record

Write = Callable[[str], tuple[Path, FlatState]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A run of one round by a state codec: its folder, and the weights as the optimizer holds them."""

    def written(state: str) -> tuple[Path, FlatState]:
        config = ValidatorConfig(
            model=Model(preset="tiny"),
            data=Data(source="sample"),
            codec=Codec(state=state),
            run=RunConfig(dir=str(tmp_path / "run")),
        )
        corpus = Corpus.open(config.data, 64, config.run.seed)
        with open_run_directory(config, corpus.manifest) as directory:
            training = Training(config, torch.device("cpu"))
            directory.resume(config, training, pytest.fail)
            record = round_record(1, applied=False, model=training.digest())
            saved = directory.save(1, 0, training)
            directory.commit(record, saved, keep=1, sender=Hotkey("v"), ratings={}, delivered=())
        corpus.close()
        return directory.path, training.weights

    return written


def digest(weights: FlatState) -> str:
    return model_digest(weights.schema, weights.memory())


@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_what_is_exported_is_what_was_broadcast(write: Write, state: str, tmp_path: Path) -> None:
    folder, kept = write(state)
    assert entry.main(["export", "--run.dir", str(folder), "--out", str(tmp_path / "model")]) == 0
    named = json.loads((folder / "rounds.jsonl").read_text())["model"]
    exported = FlatState(kept.schema)
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        exported.views[name].copy_(tensor)
    assert digest(exported) == named
    assert (digest(kept) == named) == (state == "fp32")
    model, _ = open_run(str(folder)).load_model()
    assert torch.equal(model.weights.flat, exported.flat)


def test_a_checkpoint_that_the_ledger_does_not_name_is_not_exported(write: Write, tmp_path: Path) -> None:
    folder, _ = write("fp32")
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        ledger.commit_resume(0, 1)
        ledger.commit_round(round_record(1, attempt=1, model="0" * 64), sender=Hotkey("v"), checkpoint="round-000001")
    with pytest.raises(CheckpointError, match="round-000001 is not the model that the ledger names"):
        open_run(str(folder)).load_model()
    assert entry.main(["export", "--run.dir", str(folder), "--out", str(tmp_path / "model")]) == 1
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_pruned_between_the_look_and_the_reading_is_looked_for_again(write: Write) -> None:
    folder, kept = write("fp32")
    before = open_run(str(folder))
    with closing(Ledger(folder / "ledger.sqlite")) as ledger:
        ledger.commit_resume(1, 1)
        ledger.commit_round(
            round_record(2, attempt=1, model=digest(kept)), sender=Hotkey("v"), checkpoint="round-000002"
        )
    (folder / "checkpoints" / "round-000001").rename(folder / "checkpoints" / "round-000002")
    run, model, number = open_model(before)
    assert (number, digest(model.weights), run.head) == (2, digest(kept), open_run(str(folder)).head)
    with pytest.raises(CheckpointError, match="no checkpoint of round 1; kept are those of 2"):
        open_model(before, 1)
    (folder / "checkpoints" / "round-000002" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="not whole"):
        open_model(run)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Make a folder one that cannot be written; skips where this process may write anywhere and mount nothing."""
    mounted: list[Path] = []

    def seal(folder: Path) -> None:
        if os.geteuid():
            folder.chmod(0o555)
            return
        bound = ["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]
        if shutil.which("mount") is None or any(subprocess.run(c, capture_output=True).returncode for c in bound):
            pytest.skip("this process may not mount")
        mounted.append(folder)

    yield seal
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)
    (tmp_path / "run").chmod(0o755)


def test_a_run_that_can_only_be_read(write: Write, read_only: Callable[[Path], None], tmp_path: Path) -> None:
    folder, kept = write("fp32")
    read_only(folder)
    with pytest.raises(OSError, match=r"Read-only|denied"):
        (folder / "x").write_text("")
    for command in (["sample", "--tokens", "1"], ["export", "--out", str(tmp_path / "model")]):
        assert entry.main([command[0], "--run.dir", str(folder), *command[1:]]) == 0
    run = open_run(str(folder))
    assert digest(run.load_model()[0].weights) == digest(kept)
    assert [record.round for record in run.records()] == [1]
    assert {path.suffix for path in folder.glob("ledger*")} == {".sqlite"}
