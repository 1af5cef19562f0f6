"""Checkpoints: whole or absent, every byte vouched for."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedgpt2.errors import CheckpointError, DiskFullError, RunDirectoryError
from fedgpt2.storage import checkpoints as checkpoints
from fedgpt2.storage import files as files
from fedgpt2.storage.checkpoints import Checkpoint, checkpoint_name, load, prune, save

MODEL = {"a": (2, 3), "b": (4,)}
OPTIMIZER = {"exp_avg": (10,)}
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def contents() -> Checkpoint:
    model = {name: torch.randn(shape) for name, shape in MODEL.items()}
    return Checkpoint(model, {"exp_avg": torch.randn(10)}, {"round": 7})


def test_round_trip_is_exact_and_a_safetensors_file(tmp_path: Path) -> None:
    saved = contents()
    assert save(tmp_path, 7, saved) == "round-000007" == checkpoint_name(7)
    back = load(tmp_path, "round-000007", MODEL, OPTIMIZER)
    assert all(torch.equal(back.model[name], saved.model[name]) for name in MODEL)
    assert torch.equal(back.optimizer["exp_avg"], saved.optimizer["exp_avg"])
    assert back.state == {"round": 7}
    assert torch.equal(load_file(tmp_path / "round-000007" / "model.safetensors")["a"], saved.model["a"])
    assert load(tmp_path, "round-000007", MODEL, None).optimizer == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000007"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 7, contents())
    saved = contents()
    save(tmp_path, 7, saved)
    assert torch.equal(load(tmp_path, "round-000007", MODEL, OPTIMIZER).model["b"], saved.model["b"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["remove", "flip", "cut"])
def test_damage_to_any_file_is_found(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1, contents())
    path = tmp_path / "round-000001" / name
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[-3] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(CheckpointError, match=r"missing|damaged"):
        load(tmp_path, "round-000001", MODEL, OPTIMIZER)


def test_of_what_is_optional_comes_what_is_there(tmp_path: Path) -> None:
    saved = Checkpoint({}, {"exp_avg": torch.randn(10), "aggregate_1": torch.randn(10)}, {})
    save(tmp_path, 1, saved)
    optional = {f"aggregate_{age}": (10,) for age in (1, 2)}
    back = load(tmp_path, "round-000001", {}, OPTIMIZER, optional).optimizer
    assert back.keys() == saved.optimizer.keys()
    assert torch.equal(back["aggregate_1"], saved.optimizer["aggregate_1"])
    for wrong in ({}, {"aggregate_1": (9,)}):
        with pytest.raises(CheckpointError, match=r"is of another model: .*aggregate_1"):
            load(tmp_path, "round-000001", {}, OPTIMIZER, wrong)


@pytest.mark.parametrize("model", [{"a": (2, 3)}, {"a": (3, 2), "b": (4,)}, {"a": (2, 3), "c": (4,)}])
def test_another_model_is_named_as_such(tmp_path: Path, model: dict[str, tuple[int, ...]]) -> None:
    save(tmp_path, 1, contents())
    with pytest.raises(CheckpointError, match=r"model\.safetensors is of another model"):
        load(tmp_path, "round-000001", model, OPTIMIZER)


def test_json_that_is_no_object_and_an_unreadable_file(tmp_path: Path) -> None:
    save(tmp_path, 1, contents())
    manifest = tmp_path / "round-000001" / "manifest.json"
    manifest.write_text("[]")
    with pytest.raises(CheckpointError, match="not an object"):
        load(tmp_path, "round-000001", MODEL, OPTIMIZER)
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path, "round-000001", MODEL, OPTIMIZER)


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, contents())

    def full(path: Path, parts: object) -> None:
        path.write_bytes(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_parts", full)
    with pytest.raises(DiskFullError, match="no space left"):
        save(tmp_path, 2, contents())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000001"]
    assert load(tmp_path, "round-000001", MODEL, OPTIMIZER).state == {"round": 7}


def test_other_write_errors_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot use"):
        save(tmp_path / "file", 1, contents())


def test_prune_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number, contents())
    (tmp_path / ".round-000004.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    prune(tmp_path, ["round-000003"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "round-000003"]
    shutil.rmtree(tmp_path / "notes")


@pytest.mark.parametrize(
    "name", ["round-000001-good", "round-000001.old", "round-1", "round-0000001", ".round-000001", "round-000001.tmp"]
)
def test_prune_leaves_what_somebody_put_there(tmp_path: Path, name: str) -> None:
    for number in (1, 2, 1_000_000):
        save(tmp_path, number, contents())
    shutil.copytree(tmp_path / "round-000001", tmp_path / name)
    prune(tmp_path, ["round-000002"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["round-000002", name])


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "key"
    files.write_durably(path, b"old")
    files.write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_secret_is_nobody_elses_from_its_first_byte_on(tmp_path: Path) -> None:
    modes = []

    def parts():
        modes.append((tmp_path / ".key.tmp").stat().st_mode & 0o777)
        yield b"secret"

    files.replace_durably(tmp_path / "key", parts(), 0o600)
    assert modes == [0o600]
    assert (tmp_path / "key").read_bytes() == b"secret"
