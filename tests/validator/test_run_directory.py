"""Whose run a directory holds, and where it goes on."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from fedgpt2.config import Data
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import CheckpointError, RunDirectoryError
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.validator.run_directory import open_run_directory
from fedgpt2.validator.training import Training

from .conftest import MINERS, answer, run_row, with_settings

HONEST = {MINERS[0]: answer}


@pytest.fixture
def train(running):
    """Run rounds up to a number; returns the weights and moments after the last."""

    async def run_to(config, last, *, save_last=False):
        with running(config, HONEST) as run:
            ledger = run.directory.ledger
            for number in range(ledger.last_round() + 1, last + 1):
                await run_row(run, number, ledger.attempt())
            if save_last:
                run.directory.save_last(run.training, config.checkpoint.keep)
            moments = run.training.optimizer.tensors()
            return [run.training.weights.flat.clone(), *(tensor.clone() for tensor in moments.values())]

    return run_to


def facts(config):
    return json.loads((config_path(config) / "config.json").read_text())


def config_path(config):
    return Path(config.run.dir)


def test_a_runs_name_and_key_come_from_what_it_is_given_to_draw(config, corpus):
    drawn = iter([b"\1" * 32, b"\2" * 32])
    with open_run_directory(config, corpus.manifest, lambda size: next(drawn)) as directory:
        assert {directory.run_id, directory.key.hex()} == {"01" * 32, "02" * 32}


def test_a_new_run_commits_to_its_key_and_keeps_it_secret(opened, config, corpus):
    with opened(config) as (directory, _, done):
        assert done == 0
        key = directory.key
    written = facts(config)
    assert written["evaluation_key_sha256"] == hashlib.sha256(key).hexdigest()
    assert key.hex() not in (config_path(config) / "config.json").read_text()
    assert (config_path(config) / "evaluation.key").stat().st_mode & 0o077 == 0
    assert written["manifest_digest"] == corpus.manifest.digest()
    assert (written["run_id"], written["seed"], written["earlier_keys"]) == (directory.run_id, 1337, [])
    assert {"torch", "fedgpt2"} <= set(written["versions"])
    assert opened.notices == []


def test_the_key_of_a_run_that_goes_on_stays(opened, config):
    keys, runs = [], []
    for _ in range(2):
        with opened(config) as (directory, _, _):
            keys.append(directory.key)
            runs.append(directory.run_id)
    assert keys[0] == keys[1]
    assert runs[0] == runs[1]


def test_a_finished_run_that_goes_on_draws_a_new_key_and_keeps_the_old_one_checkable(opened, config):
    with opened(config) as (directory, _, _):
        old = directory.key
        directory.reveal_key()
    assert facts(config)["evaluation_key"] == old.hex()
    with opened(config) as (directory, _, _):
        new = directory.key
    assert new != old
    written = facts(config)
    assert "evaluation_key" not in written
    assert written["evaluation_key_sha256"] == hashlib.sha256(new).hexdigest()
    assert written["earlier_keys"] == [
        {"sha256": hashlib.sha256(old).hexdigest(), "key": old.hex(), "last_round": 0},
    ]


def test_a_lost_key_shows(opened, config):
    with opened(config) as (directory, _, _):
        old = directory.key
    (config_path(config) / "evaluation.key").unlink()
    with opened(config):
        assert facts(config)["earlier_keys"] == [
            {"sha256": hashlib.sha256(old).hexdigest(), "key": None, "last_round": 0}
        ]


def test_two_validators_cannot_share_it(opened, config):
    with opened(config), pytest.raises(RunDirectoryError, match="is in use by another validator"), opened(config):
        pass


async def test_it_goes_on_after_the_last_checkpoint(train, opened, config):
    after = await train(config, 2)
    with opened(config) as (directory, training, done):
        assert (done, directory.ledger.attempt()) == (2, 0)
        now = [training.weights.flat, *training.optimizer.tensors().values()]
        assert all(torch.equal(a, b) for a, b in zip(after, now, strict=True))


@pytest.mark.parametrize(("rule", "restored", "after"), [("contribution", 2, 2), ("off", 0, 0)])
async def test_recent_aggregates_are_restored_where_the_ranking_needs_them(
    rule, restored, after, train, opened, config
):
    moved = await train(config, 3)
    with opened(config) as (_, training, _):
        before = aggregates(training)
    changed = with_settings(config, ranking={"rule": rule})
    with opened(changed) as (_, training, done):
        now = aggregates(training)
        assert (done, len(now)) == (3, restored)
        assert all(torch.equal(*pair) for pair in zip(before[:restored], now, strict=True))
        moments = training.optimizer.tensors().values()
        assert all(torch.equal(*pair) for pair in zip(moved, [training.weights.flat, *moments], strict=True))
    await train(changed, 4)
    with opened(config) as (_, training, done):
        assert (done, len(aggregates(training))) == (4, after)


def aggregates(training):
    return [values.clone() for vector, values in training.baseline() if vector.kind == "aggregate"]


async def test_rounds_after_it_are_taken_back_under_another_attempt(train, opened, config):
    config = with_settings(config, checkpoint={"every": 2})
    whole = await train(with_settings(config, run={"dir": config.run.dir + "-whole"}), 3)
    await train(config, 3)
    with opened(config) as (directory, _, done):
        assert (done, directory.ledger.attempt(), directory.ledger.last_round()) == (2, 1, 2)
        assert len(directory.lines.path.read_text().splitlines()) == 2
        assert opened.notices == ["round 3 has no checkpoint: going on after round 2"]
    with opened(config):
        assert opened.notices == []
    again = await train(config, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


async def test_a_run_without_a_checkpoint_begins_again(train, opened, config):
    config = with_settings(config, checkpoint={"every": 5})
    await train(config, 2)
    with opened(config) as (directory, _, done):
        assert (done, directory.ledger.attempt()) == (0, 1)
        assert opened.notices == ["rounds 1 to 2 have no checkpoint: beginning again"]


async def test_the_last_round_is_saved_once(train, opened, config):
    config = with_settings(config, checkpoint={"every": 5})
    await train(config, 2, save_last=True)
    with opened(config) as (directory, training, done):
        assert (done, directory.ledger.attempt()) == (2, 0)
        directory.save_last(training, 2)
        assert [name for _, name in directory.ledger.checkpoints()] == ["round-000002"]


async def test_orders_that_would_be_others_are_another_attempt(train, opened, config):
    await train(config, 1)
    with opened(with_settings(config, data={"windows": 2})) as (directory, _, done):
        assert (done, directory.ledger.attempt()) == (1, 1)
    with opened(with_settings(config, data={"windows": 2})) as (directory, _, _):
        assert directory.ledger.attempt() == 1


async def test_a_checkpoint_that_is_gone_is_said_and_so_are_its_rounds(train, opened, config):
    config = with_settings(config, checkpoint={"keep": 3})
    await train(config, 3)
    for number in (2, 3):
        shutil.rmtree(config_path(config) / "checkpoints" / f"round-00000{number}")
    with opened(config) as (_, _, done):
        assert (done, opened.notices) == (
            1,
            [
                "checkpoint round-000003 is gone; going on from round-000001",
                "rounds 2 to 3 have no checkpoint: going on after round 1",
            ],
        )


async def test_without_any_checkpoint_left_nothing_is_begun_again(train, opened, config):
    await train(config, 3)
    shutil.rmtree(config_path(config) / "checkpoints")
    with pytest.raises(CheckpointError, match=r"round-000003 is gone, and so is every"), opened(config):
        pass


def edit(path, **changes):
    """Change facts of a checkpoint and make its manifest vouch for them."""
    state = json.loads((path / "state.json").read_text()) | changes
    data = json.dumps(state).encode()
    (path / "state.json").write_bytes(data)
    sums = json.loads((path / "manifest.json").read_text())
    sums["state.json"] = {"blake3": blob_digest(data), "bytes": len(data)}
    (path / "manifest.json").write_text(json.dumps(sums))


FOREIGN = {
    "run": ({"run_id": "cd" * 32}, "is of another run or round"),
    "round": ({"round": 2}, "is of another run or round"),
    "model": ({"model": "0" * 64}, "is not the ledger's model"),
}


@pytest.mark.parametrize("case", FOREIGN)
async def test_a_checkpoint_of_another(case, train, opened, config):
    changes, text = FOREIGN[case]
    await train(config, 3)
    edit(config_path(config) / "checkpoints" / "round-000003", **changes)
    with pytest.raises(CheckpointError, match=f"{text}; remove .*round-000003 to go on from"), opened(config):
        pass


async def test_settings_with_which_it_does_not_go_on_are_not_written(train, opened, config):
    await train(config, 2)
    before = (config_path(config) / "config.json").read_bytes()
    whole = config_path(config) / "checkpoints" / "round-000002"
    shutil.move(whole / "state.json", whole.with_name("aside"))
    changed = with_settings(config, optimizer={"lr": 0.5})
    with pytest.raises(CheckpointError, match=r"state\.json is missing"), opened(changed):
        pass
    assert (config_path(config) / "config.json").read_bytes() == before
    shutil.move(whole.with_name("aside"), whole / "state.json")
    with opened(changed):
        assert facts(config)["settings"]["optimizer"]["lr"] == 0.5


async def test_an_earlier_key_ends_where_the_run_goes_on(train, opened, config):
    config = with_settings(config, checkpoint={"every": 2})
    await train(config, 3)
    (config_path(config) / "evaluation.key").unlink()
    with opened(config) as (_, _, done):
        assert (done, facts(config)["earlier_keys"][0]["last_round"]) == (2, 2)


OTHERS = {
    "model": ({"model": {"preset": "nano"}}, "--model.preset tiny, not nano"),
    "codec": ({"codec": {"state": "bf16"}}, "--codec.state fp32, not bf16"),
    "optimizer": ({"optimizer": {"name": "sgd"}}, "--optimizer.name adamw, not sgd"),
    "seed": ({"run": {"seed": 7}}, "--run.seed 1337, not 7"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_runs_directory_is_refused_untouched(case, opened, config):
    changes, text = OTHERS[case]
    with opened(config):
        pass
    before = {path: path.read_bytes() for path in config_path(config).rglob("*") if path.is_file()}
    with (
        pytest.raises(RunDirectoryError, match=f"holds a run with {text}; choose another --run.dir"),
        opened(with_settings(config, **changes)),
    ):
        pass
    assert {path: path.read_bytes() for path in config_path(config).rglob("*") if path.is_file()} == before


def test_other_text_is_another_run(opened, config, corpus):
    with opened(config):
        pass
    other = Corpus.open(Data(source="sample", max_slots=4, max_pages=1), 64, 1337)
    other.close()
    with (
        pytest.raises(RunDirectoryError, match="holds a run over other text or --data settings"),
        open_run_directory(config, other.manifest),
    ):
        pass


async def test_a_run_may_get_more_slots_and_says_until_when_it_had_fewer(train, opened, config, corpus):
    await train(config, 2)
    other = Corpus.open(Data(source="sample", max_slots=6, max_pages=2), 64, 1337)
    other.close()
    changed = with_settings(config, data={"max_slots": 6})
    with open_run_directory(changed, other.manifest) as directory:
        assert directory.resume(changed, Training(changed, torch.device("cpu")), print) == 2
        assert directory.ledger.attempt() == 1  # its orders are others
    assert facts(config)["manifest_digest"] == other.manifest.digest()
    (earlier,) = facts(config)["earlier_manifests"]
    assert earlier == {"digest": corpus.manifest.digest(), "max_slots": 4, "last_round": 2}


@pytest.mark.parametrize("empty", [False, True])
async def test_a_run_is_not_begun_again_without_its_ledger(train, opened, config, empty):
    await train(config, 1)
    file = config_path(config) / "ledger.sqlite"
    file.unlink()
    if empty:
        file.touch()
    what = "is empty" if empty else "is missing"
    with (
        pytest.raises(RunDirectoryError, match=rf"ledger\.sqlite {what}; restore it, or choose another"),
        opened(config),
    ):
        pass
    assert (config_path(config) / "checkpoints" / "round-000001").is_dir()


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "is damaged"), ("[]", "not an object"), ("{}", "it names no run"), ("\xff", "is damaged")],
)
def test_damaged_settings(opened, config, content, text):
    with opened(config):
        pass
    (config_path(config) / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunDirectoryError, match=text), opened(config):
        pass


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"ab" * 31, b"\xff" * 64])
def test_a_damaged_key(opened, config, content):
    with opened(config):
        pass
    (config_path(config) / "evaluation.key").write_bytes(content)
    with (
        pytest.raises(RunDirectoryError, match="not 64 hex characters; remove it to go on with a new key"),
        opened(config),
    ):
        pass


async def test_lost_settings_beside_a_ledger(train, opened, config):
    await train(config, 1)
    (config_path(config) / "config.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"config\.json is missing beside a ledger"), opened(config):
        pass


async def test_the_journal_is_cut_back_to_what_was_committed(train, opened, config):
    await train(config, 2)
    journal = config_path(config) / "rounds.jsonl"
    whole = journal.read_text()
    journal.write_text(whole + '{"round":3,"hal')
    with opened(config):
        assert journal.read_text() == whole
