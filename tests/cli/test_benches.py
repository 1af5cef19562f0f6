"""Which bench gets which settings."""

import importlib
import inspect
from types import SimpleNamespace

import pytest

from fedgpt2.cli import benches
from fedgpt2.cli import main as entry
from fedgpt2.cli.flags import flags_of


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["transport"], {"preset": "small", "repeats": 5, "as_json": False}),
        (["round", "--preset", "nano", "--repeats", "2", "--json"], {"preset": "nano", "repeats": 2, "as_json": True}),
        (["compute", "--steps", "0"], {"preset": "small", "repeats": 5, "as_json": False, "tokens": 2048, "steps": 0}),
    ],
)
def test_a_bench_gets_its_settings(words: list[str], got: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def fake(name: str) -> SimpleNamespace:
        return SimpleNamespace(run=lambda **settings: asked.append((name, settings)) or 0)

    monkeypatch.setattr(benches.importlib, "import_module", fake)
    assert benches.main(words) == 0
    assert asked == [(f"fedgpt2.cli.bench.{words[0]}", got)]


@pytest.mark.parametrize("name", benches.BENCHES)
def test_every_bench_takes_what_it_is_given(name: str) -> None:
    run = importlib.import_module(f"fedgpt2.cli.bench.{name}").run
    settings = benches.ComputeBench if name == "compute" else benches.Bench
    names = {"as_json" if flag.key == "json" else flag.key for flag in flags_of(settings)}
    assert names <= set(inspect.signature(run).parameters)


def test_a_bench_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["bench", "nothing"]) == 2
    assert (
        capsys.readouterr().err
        == "fedgpt2 bench: unknown bench nothing; one of transport, compute, round, aggregation, data\n"
    )
    assert entry.main(["bench"]) == 2
    text = capsys.readouterr().out
    assert all(name in text for name in benches.BENCHES)
