"""Simulations small enough for tests: `tiny` over a short text of its own."""

import random
from dataclasses import replace

import pytest
import torch

from fedgpt2.config import Data, Gradient, Model, Ranking, SimulationConfig
from fedgpt2.config import Run as RunConfig
from fedgpt2.simulate import program

_WORDS = [f"{a}{b}" for a in ("ta", "ke", "mi", "no", "ru", "sel", "v") for b in ("", "n", "la", "dit", "mos")]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Settings of a text of some 24 pages of words, tokenised once."""
    rng = random.Random(5)  # noqa: S311
    folder = tmp_path_factory.mktemp("text")
    file = folder / "words.txt"
    lines = (" ".join(rng.choices(_WORDS, k=60)) + "." for _ in range(2000))
    file.write_text("\n\n".join(lines), encoding="utf-8")
    return Data(source=f"text:{file}", cache=str(folder), windows=2, seq_len=32, max_slots=8, max_pages=1)


@pytest.fixture
def small(text, monkeypatch):
    """`small(miners=4, run={"seed": 2}, ...)`: a simulation's settings, groups changed field by field."""
    monkeypatch.setattr(program, "prepare", lambda device, threads: torch.device(device))
    base = SimulationConfig(
        miners=4,
        rounds=2,
        model=Model(preset="tiny"),
        data=text,
        gradient=Gradient(precision="fp32"),
        ranking=Ranking(tokens=64),
        run=RunConfig(dir="", eval_every=1, eval_windows=4, score_windows=2),
    )

    def changed(**changes):
        groups = {
            name: replace(getattr(base, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return replace(base, **groups)

    return changed
