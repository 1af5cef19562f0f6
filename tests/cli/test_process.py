"""Waiting for one another's threads must not cost a machine's other programs, nor this one, its cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedgpt2.cli.process import SPIN_COUNT, limit_spinning

SRC = Path(__file__).parents[2] / "src"


@pytest.mark.parametrize(
    ("there", "then"),
    [
        ({}, "3000"),
        ({SPIN_COUNT: "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_what_the_environment_says_stands(there, then, monkeypatch) -> None:
    for name in (SPIN_COUNT, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get(SPIN_COUNT) == then


def test_every_program_does_it_before_torch_is_loaded(tmp_path) -> None:
    """OpenMP reads its environment once, when it is loaded."""
    told = """
import builtins, os, sys
imported = builtins.__import__
def watched(name, *args, **kwargs):
    if name == "torch":
        print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
        os._exit(0)
    return imported(name, *args, **kwargs)
builtins.__import__ = watched
from fedgpt2.cli.main import main
main(["simulate", "--rounds", "1"])
"""
    answer = subprocess.run(
        [sys.executable, "-c", told],
        env={"PYTHONPATH": str(SRC)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "3000\n"
