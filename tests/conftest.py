"""Shapes and types in signatures are checked while testing: jaxtyping shapes by beartype; same examples every time."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

GOLDEN = Path(__file__).parent / "golden"
CHECKED = [
    "fedgpt2.model",
    "fedgpt2.gradient",
    "fedgpt2.optim",
    "fedgpt2.aggregation.combine",  # not the stages and rules: they have n x n numbers, no tensors, and many calls
    "fedgpt2.aggregation.coordinatewise",
    "fedgpt2.aggregation.gram",
    "fedgpt2.aggregation.mean",
    "fedgpt2.aggregation.pipeline",
    "fedgpt2.ranking.inner_products",
    "fedgpt2.simulate.attacks.formulas",
]

if any(name.startswith(tuple(CHECKED)) for name in sys.modules):
    raise RuntimeError("the rooms whose signatures are to be checked are imported already")
install_import_hook(CHECKED, "beartype.beartype")

# What has fixtures of the whole session that take a minute to make: the tests of such a room run in one process.
ROOMS = ["federation", "cli"]


class Rooms(LoadScopeScheduling):
    """The tests of a file, or of one of ROOMS, in one process: xdist's own groups are lost on this pytest."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        return file.parent.name if file.parent.name in ROOMS else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Rooms:
    """How tests are dealt out to the processes."""
    return Rooms(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest room, so that none waits for it."""
    items.sort(key=lambda item: item.path.parent.name != ROOMS[0])


settings.register_profile("suite", deadline=None, derandomize=True)  # a busy machine must not fail a property
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The suite shares its machine; one thread also keeps sums in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str, object], None]:
    """Compare a value with a golden file; FEDGPT2_WRITE_GOLDEN=1 rewrites the file first."""

    def compare(name: str, value: object) -> None:
        path = GOLDEN / name
        if os.environ.get("FEDGPT2_WRITE_GOLDEN") == "1":
            path.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
        assert json.loads(json.dumps(value)) == json.loads(path.read_text(encoding="utf-8"))

    return compare
