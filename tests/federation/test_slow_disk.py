"""A disk that takes half a second for every fsync: rounds take longer, and no event loop waits for it."""

import json
import shutil
import subprocess
import sys

import pytest

from .program import HERE, SRC, Spawned

LATEST = 0.05  # seconds a timer of an event loop may be late

COMPILER = shutil.which("cc")


class Probed(Spawned):
    """A program whose event loop is probed, on a slow disk."""

    def command(self):
        """The command line."""
        return [sys.executable, HERE / "probed.py", f"{self.name}.json", *self.argv]


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory):
    """The environment in which every fsync takes half a second longer."""
    library = tmp_path_factory.mktemp("preload") / "slow_fsync.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, HERE / "slow_fsync.c"], check=True)
    return {"LD_PRELOAD": str(library), "PYTHONPATH": str(SRC)}


@pytest.mark.skipif(not sys.platform.startswith("linux") or COMPILER is None, reason="needs Linux and a C compiler")
def test_no_event_loop_waits_for_the_disk(federation, slow_disk):
    how = {"kind": Probed, "environment": slow_disk}
    miners = [federation.miner(name, **how) for name in ("M1", "M2")]
    validator = federation.validator(miners, rounds=2, **how)
    validator.ended()
    for miner in miners:
        miner.interrupt(10.0)
    assert [row["applied"] for row in federation.rows()] == [True, True]
    assert max(row["seconds"]["checkpoint"] for row in federation.rows()) > 0.5, "the disk was not slow"
    for name in ("validator", "M1", "M2"):
        late = [
            delay for delay in json.loads((federation.folder / f"{name}.json").read_text()) if delay["late"] > LATEST
        ]
        assert not late, f"{name}:\n" + "\n".join(f"{delay['late']:.3f} s\n{delay['during']}" for delay in late[:20])
