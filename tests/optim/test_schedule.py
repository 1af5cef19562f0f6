"""The learning rate over rounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.config import Optimizer
from fedgpt2.optim.schedule import learning_rate

CONFIG = Optimizer(lr=1.0, min_lr=0.1, warmup=10)


def test_warm_up_is_linear_and_never_zero():
    assert [learning_rate(r, CONFIG, 100) for r in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


def test_cosine_from_peak_to_minimum():
    rates = [learning_rate(r, CONFIG, 110) for r in (10, 60, 110)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])


def test_it_stays_at_the_minimum_after_the_horizon():
    assert learning_rate(10_000, CONFIG, 110) == pytest.approx(0.1)


def test_without_a_horizon_it_is_constant_after_the_warm_up():
    assert {learning_rate(r, CONFIG) for r in (9, 10, 500)} == {1.0}


def test_without_warm_up_it_starts_at_the_peak():
    assert learning_rate(0, Optimizer(lr=0.3, warmup=0), 0) == 0.3


@given(st.integers(0, 300), st.integers(0, 50), st.integers(0, 300))
def test_it_stays_within_its_bounds(at, warmup, horizon):
    config = Optimizer(lr=1.0, min_lr=0.1, warmup=warmup)
    rate = learning_rate(at, config, horizon)
    assert 0 < rate <= 1.0
    if at >= warmup:
        assert rate >= 0.1 - 1e-12


@given(st.integers(10, 300), st.integers(12, 300))
def test_it_never_rises_after_the_warm_up(at, horizon):
    assert learning_rate(at + 1, CONFIG, horizon) <= learning_rate(at, CONFIG, horizon) + 1e-12
