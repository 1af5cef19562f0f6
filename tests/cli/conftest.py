"""One short demo, of real processes, that several tests look at."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SRC = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Shown:
    """A demo that has ended."""

    folder: Path
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """The environment, without this suite's settings, in which the package is found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDGPT2_")}
    return {**kept, "PYTHONPATH": str(SRC)}


def demo(folder: Path, *flags: str) -> subprocess.Popen[str]:
    """A demo, started."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedgpt2", "demo", "--run.dir", str(folder), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def running(folder: Path) -> list[psutil.Process]:
    """Processes that have to do with a run directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A demo of six rounds: too few to learn, enough for every one of the hostile miner's lies."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    with demo(folder, "--rounds", "6", "--seconds", "90") as child:
        out, err = child.communicate(timeout=200)  # some 60 s on two cores of their own
    return Shown(folder, child.returncode, out, err)
