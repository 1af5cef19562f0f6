"""Sampling from a run, and exporting it to transformers."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fedgpt2.cli import main as entry
from fedgpt2.cli.runs import open_run
from fedgpt2.data.tokenizer import encode
from fedgpt2.errors import CheckpointError, RunDirectoryError
from fedgpt2.protocol.round_record import decode_record
from tests.cli.conftest import Shown

pytestmark = pytest.mark.timeout(240)

TEXT = "The state of the Union is strong, naïve\n\n  and 1,234 tokens long."


@pytest.fixture(scope="module")
def exported(shown: Shown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    assert entry.main(["export", "--run.dir", str(shown.folder), "--out", str(out)]) == 0
    return out


def test_sampling_is_a_function_of_its_seed(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in ("1", "1", "2"):
        words = ["sample", "--run.dir", str(shown.folder), "--prompt", "We the", "--tokens", "8", "--seed", seed]
        assert entry.main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("We the")
    assert said[0] == said[1] != said[2]


def test_transformers_opens_the_export_and_agrees(
    exported: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from transformers import AutoTokenizer, GPT2LMHeadModel

    theirs, info = GPT2LMHeadModel.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours, number = open_run(str(shown.folder)).load_model()
    assert number == 6
    tokens = torch.tensor([encode(TEXT).tolist()])
    with torch.no_grad():
        difference = theirs.eval()(tokens).logits - ours.logits(ours(tokens))
    assert difference.abs().max() < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer(TEXT)["input_ids"] == encode(TEXT).tolist()
    assert tokenizer.decode(encode(TEXT).tolist()) == TEXT
    assert tokenizer.model_max_length == 128


def test_the_card_tells_where_the_model_comes_from(exported: Path, shown: Shown) -> None:
    card, facts = (exported / "README.md").read_text(), json.loads((exported / "run.json").read_text())
    stored = json.loads((shown.folder / "config.json").read_text())
    assert facts["manifest_digest"] == stored["manifest_digest"]
    assert facts["tokens"] == sum(miner["tokens"] for miner in facts["miners"]) > 0
    assert sum(miner["refused"] for miner in facts["miners"]) == 4
    for part in (stored["manifest_digest"], stored["run_id"], "State of the Union", "CC0", "parameters"):
        assert part in card
    for text in (card, json.dumps(facts)):
        assert str(shown.folder) not in text
        assert "wallets" not in text
        assert "evaluation_key" not in text


def test_an_export_overwrites_only_when_told(exported: Path, shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--run.dir", str(shown.folder), "--out", str(exported)]
    assert entry.main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert entry.main([*words, "--overwrite"]) == 0
    assert entry.main(words[:3]) == 2
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sample"], ["export", "--out", "x"]])
def test_a_folder_without_a_run_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert entry.main([*command, "--run.dir", str(tmp_path / "nothing")]) == 1
    assert (
        capsys.readouterr().err == f"fedgpt2 {command[0]}: {tmp_path}/nothing holds no run; name one with --run.dir\n"
    )


@pytest.mark.parametrize("derived", [None, '{"round":9,"applied":true}\n{"rou'], ids=["gone", "another"])
def test_the_rounds_of_a_run_are_those_of_its_ledger(shown: Shown, tmp_path: Path, derived: str | None) -> None:
    """rounds.jsonl is written after the commit, for people: a kill leaves it short, and anybody may edit it."""
    copy = tmp_path / "run"
    shutil.copytree(shown.folder, copy)
    lines = (copy / "rounds.jsonl").read_bytes().splitlines()
    (copy / "rounds.jsonl").unlink()
    if derived is not None:
        (copy / "rounds.jsonl").write_text(derived)
    assert list(open_run(str(copy)).records()) == [decode_record(line) for line in lines]


def test_rounds_without_a_checkpoint_and_damage_are_named(shown: Shown, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(shown.folder, copy)
    with pytest.raises(CheckpointError, match="no checkpoint of round 3; kept are those of 6"):
        open_run(str(copy)).load_model(3)
    model = copy / "checkpoints" / "round-000006" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        open_run(str(copy)).load_model()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        open_run(str(copy)).load_model()
    with closing(sqlite3.connect(copy / "ledger.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE entries SET body = '{}' WHERE kind = 'round' AND round = 2")
    with pytest.raises(RunDirectoryError, match="record of round 2 is damaged"):
        list(open_run(str(copy)).records())
    (copy / "config.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="damaged"):
        open_run(str(copy))
