"""Children and their end."""

import time
from pathlib import Path

import pytest

from fedgpt2.cli import process_group as crew_module
from fedgpt2.cli.process_group import Crew


@pytest.fixture(autouse=True)
def _modules_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def ready(crew: Crew, name: str) -> None:
    until = time.monotonic() + 10
    while not crew.log(name).read_text() and time.monotonic() < until:
        time.sleep(0.02)


def test_a_stubborn_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_PATIENCE", 0.3)
    with Crew(tmp_path) as crew:
        crew.start("a", "stubborn", [])
        ready(crew, "a")
        crew.interrupt("a")
        assert crew.wait("a", 0.2) is None
        assert crew.ended("a") is None
        assert crew.last_words("a") == "last words"
    assert crew.ended("a") == -9


def test_children_end_with_an_error_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_PATIENCE", 0.3)
    crew = Crew(tmp_path)

    def fail() -> None:
        with crew:
            crew.start("a", "stubborn", [])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert crew.ended("a") is not None


def test_a_child_gets_our_package_and_none_of_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGPT2_ROUND__DEADLIN", "3")
    monkeypatch.setenv("FEDGPT2_DEVICE", "cuda:7")
    with Crew(tmp_path) as crew:
        crew.start("help", "fedgpt2", ["miner", "--nonsense"])
        assert crew.wait("help", 10) == 2
        assert crew.last_words("help") == "fedgpt2 miner: unknown flag --nonsense"
        assert crew.log("help").read_text() == ""
