"""N miners over real sockets are one big batch; benchmarks/equality.py says how the two are compared."""

import importlib.util
import sys
from pathlib import Path

import pytest

from fedgpt2.config import Data

_RECIPE = Path(__file__).parents[2] / "benchmarks" / "equality.py"


@pytest.fixture(scope="module")
def equality():
    """The recipe, loaded from its file."""
    spec = importlib.util.spec_from_file_location("equality_recipe", _RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def setting(equality, federation):
    """Small and quick: `tiny` on the session's text."""
    data = Data(source=federation.source, seq_len=64, windows=2, span=4, max_slots=4, max_pages=4)
    return equality.Setting("tiny", 20, data)


@pytest.fixture(scope="module")
def precise(shared):
    """Four miners that compute in fp32."""
    return [shared.miner(name, "--gradient.precision", "fp32") for name in ("P1", "P2", "P3", "P4")]


def _train(federation, precise, setting, optimizer, miners):
    run = f"{optimizer.name}-{miners}"
    flags = (*setting.flags(optimizer), "--round.min_miners", miners)
    federation.validator(precise[:miners], *flags, rounds=setting.rounds, run=run).ended()
    return federation.folder / run


@pytest.mark.parametrize("miners", [1, 2, 4])
def test_sgd_is_the_big_batch_parameter_by_parameter(equality, federation, precise, setting, miners):
    run = _train(federation, precise, setting, equality.SGD, miners)
    found = equality.compare(run, setting, equality.SGD, miners)
    assert found.largest_difference <= equality.LARGEST_DIFFERENCE
    assert found.moved >= equality.LEAST_MOVED
    assert found.holds


def test_adamw_reaches_the_big_batch_s_loss(equality, federation, precise, setting):
    found = equality.compare(_train(federation, precise, setting, equality.ADAMW, 2), setting, equality.ADAMW, 2)
    assert abs(found.val_loss - found.val_loss_big_batch) <= equality.LARGEST_LOSS_DIFFERENCE
    assert found.holds
