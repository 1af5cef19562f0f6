"""Shapes and types in signatures are checked while testing: jaxtyping shapes by beartype; same examples every time."""

import sys

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = [
    "fedgpt2.model",
    "fedgpt2.gradient",
    "fedgpt2.optim",
    "fedgpt2.aggregation",
    "fedgpt2.ranking.measure",
    "fedgpt2.simulate.attacks",
]

if any(name.startswith(tuple(CHECKED)) for name in sys.modules):
    raise RuntimeError("the rooms whose signatures are to be checked are imported already")
install_import_hook(CHECKED, "beartype.beartype")

settings.register_profile("suite", deadline=None, derandomize=True)  # a busy machine must not fail a property
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The suite shares its machine; one thread also keeps sums in one order."""
    torch.set_num_threads(1)
