"""A full disk: one clear line, a non-zero exit, and all up to the last round is there when room is made."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

FULL = Path("/dev/full")  # takes nothing: every write to it is ENOSPC
LINE = "; free some and start again, all up to the last round is safe"

needs_dev_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def test_no_room_for_a_checkpoint(federation, miners):
    validator = federation.validator(miners, program="full_disk:main")
    complaint = validator.complaint(1)
    assert complaint == f"fedgpt2 validator: no space left to write {federation.checkpoint(2)}{LINE}"
    assert [row["round"] for row in federation.rows()] == [1]
    assert [path.name for path in federation.checkpoint(1).parent.iterdir()] == ["round-000001"]
    again = federation.validator(miners)
    again.ended()
    assert again.lines("going on after round 1")
    assert [row["round"] for row in federation.rows()] == [1, 2, 3]
    assert {row["miners"][0]["status"] for row in federation.rows()} == {"admitted"}
    assert federation.ledger("SELECT DISTINCT attempt FROM entries") == [(0,)]  # round 2 was the same order again


@needs_dev_full
def test_no_room_for_the_journal(federation, gate):
    slow = federation.gated_miner(gate)
    gate.let(1)
    validator = federation.validator([slow])
    gate.wait_for_call(2, validator, slow)
    journal = federation.folder / "run" / "rounds.jsonl"
    journal.unlink()
    journal.symlink_to(FULL)
    gate.open()
    assert validator.complaint(1) == f"fedgpt2 validator: no space left to write {journal}{LINE}"
    federation.validator([slow]).ended()
    assert not journal.is_symlink()
    assert [row["round"] for row in federation.rows()] == [1, 2, 3]  # round 2 was committed before its line failed
    assert gate.calls == 3


@needs_dev_full
def test_no_room_to_begin(federation):
    (federation.folder / "run").mkdir()
    (federation.folder / "run" / ".manifest.json.tmp").symlink_to(FULL)
    complaint = federation.validator([1]).complaint(1)
    assert complaint == f"fedgpt2 validator: no space left to write {federation.folder / 'run' / 'manifest.json'}{LINE}"


@needs_dev_full
def test_no_room_for_a_miners_receipt(federation, miners):
    poor = federation.miner("M1")
    receipts = federation.folder / "M1" / poor.hotkey / "receipts.jsonl"
    receipts.symlink_to(FULL)
    validator = federation.validator([miners[0], poor], rounds=0)
    assert poor.complaint(1) == (f"fedgpt2 miner: {receipts.parent}: no space left; what was written before is intact")
    receipts.unlink()
    federation.miner("M1", port=poor.port).wait_for("admitted by", times=2)
    validator.interrupt()
    rounds = [json.loads(json.loads(line)["payload"])["round"] for line in receipts.read_text().splitlines()]
    assert rounds[0] == 1  # the one there was no room for
    assert rounds == sorted(set(rounds))


@pytest.fixture
def small_disk(tmp_path):
    """A disk for two checkpoints and no third; skips where this process may not mount one."""
    folder = tmp_path / "run"
    folder.mkdir()
    mount = shutil.which("mount")
    if not sys.platform.startswith("linux") or mount is None:
        pytest.skip("no mount here")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=40m", "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this process may not mount; the tests above do without")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_really_full(federation, miners, small_disk):
    """It was large enough at the start, and somebody else filled it after the first round."""
    subprocess.run(["mount", "-o", "remount,size=96m", small_disk], check=True)
    validator = federation.validator(miners, rounds=40)
    while not (federation.folder / "run" / "rounds.jsonl").is_file() or not federation.rows():
        time.sleep(0.02)
    filler = Path(small_disk) / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    complaint = validator.complaint(1)
    assert complaint.startswith("fedgpt2 validator: no space left to write ")
    assert complaint.endswith("round is safe")
    done = [row["round"] for row in federation.rows()]
    filler.unlink()
    again = federation.validator(miners, rounds=len(done) + 2)
    again.ended()
    assert again.lines(f"going on after round {len(done)}")
    assert [row["round"] for row in federation.rows()] == list(range(1, len(done) + 3))
