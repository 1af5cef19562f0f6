"""Child processes and how they end."""

import time
from pathlib import Path

import pytest

from fedgpt2.cli import process_group
from fedgpt2.cli.process_group import ProcessGroup


@pytest.fixture(autouse=True)
def _modules_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def ready(processes: ProcessGroup, name: str) -> None:
    until = time.monotonic() + 10
    while not processes.log(name).read_text() and time.monotonic() < until:
        time.sleep(0.02)


def test_a_stubborn_child_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "_GRACE_SECONDS", 0.3)
    with ProcessGroup(tmp_path) as processes:
        processes.start("a", "stubborn", [])
        ready(processes, "a")
        processes.interrupt("a")
        assert processes.wait("a", 0.2) is None
        assert processes.exit_code("a") is None
        assert processes.last_error("a") == "last words"
    assert processes.exit_code("a") == -9


def test_children_end_with_an_error_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "_GRACE_SECONDS", 0.3)
    processes = ProcessGroup(tmp_path)

    def fail() -> None:
        with processes:
            processes.start("a", "stubborn", [])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert processes.exit_code("a") is not None


def test_a_child_gets_our_package_and_none_of_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGPT2_ROUND__DEADLIN", "3")
    monkeypatch.setenv("FEDGPT2_DEVICE", "cuda:7")
    with ProcessGroup(tmp_path) as processes:
        processes.start("help", "fedgpt2", ["miner", "--nonsense"])
        assert processes.wait("help", 10) == 2
        assert processes.last_error("help") == "fedgpt2 miner: unknown flag --nonsense"
        assert processes.log("help").read_text() == ""
