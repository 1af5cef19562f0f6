"""The Gram pass: exact where gradients nearly coincide, whatever the scale, by block or at once."""

import numpy as np
import pytest
import torch

from fedgpt2.aggregation.gram import gram, norm
from fedgpt2.model import blocks


def rows_of(x: np.ndarray) -> list[torch.Tensor]:
    return list(torch.from_numpy(np.asarray(x, dtype=np.float32)))


def span_of(x: np.ndarray):
    rows = rows_of(x)
    return gram(rows, [norm(row) for row in rows])


def error(x: np.ndarray, hostile: tuple[int, ...] = ()) -> float:
    """Largest relative error of a squared distance, but for those between hostile."""
    wide = np.asarray(x, dtype=np.float32).astype(np.float64)
    exact = np.square(wide[:, None] - wide[None]).sum(2)
    off = ~np.eye(len(x), dtype=bool)
    off[np.ix_(hostile, hostile)] = False
    return float(np.abs(span_of(x).distances() ** 2 / np.where(off, exact, 1.0) - 1.0)[off].max())


@pytest.fixture
def updates() -> np.ndarray:
    """What miners would send late in training if they sent weights: 1e-4 of noise on what all share."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(50_000) + 1e-4 * rng.standard_normal((8, 50_000))


def test_what_all_share_costs_no_digits(updates):
    assert error(updates) < 2e-5


def test_a_hostile_row_of_median_norm_costs_none_either(updates):
    """A flipped sign as the centre, and everything would lie far from it."""
    order = np.argsort(np.linalg.norm(updates, axis=1))
    hostile = (int(order[0]), int(order[3]))
    updates[list(hostile)] *= -1
    assert error(updates, hostile) < 2e-5


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_no_scale_costs_digits(factor):
    assert error(factor * np.random.default_rng(1).standard_normal((7, 300))) < 2e-5


def test_a_huge_row_leaves_the_others_exact():
    x = np.random.default_rng(2).standard_normal((6, 300))
    small = span_of(x[1:]).distances()
    x[0] *= 1e30
    huge = span_of(x)
    assert np.allclose(huge.distances()[1:, 1:], small, rtol=1e-6)
    assert np.allclose(huge.norms(), np.linalg.norm(x, axis=1), rtol=1e-6)
    assert np.allclose(huge.distances()[0, 1:], np.linalg.norm(x[0]), rtol=1e-6)


def test_blocks_add_up(monkeypatch):
    x = np.random.default_rng(3).standard_normal((5, 1000))
    at_once = span_of(x)
    monkeypatch.setattr(blocks, "_PIECE", 7)
    monkeypatch.setattr(blocks, "_VALUES", 5 * 7 * 9)  # 15 blocks of nine pieces, one of seven, and six values
    monkeypatch.setattr(blocks, "_FEWEST", 1)
    assert np.allclose(span_of(x).inner, at_once.inner, rtol=1e-5, atol=1e-4)


def test_equal_rows_are_at_distance_nothing():
    x = np.tile(np.random.default_rng(4).standard_normal(333), (5, 1))
    assert not span_of(x).distances().any()


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-25, 1.0, 1e18, 1e30, 3e38])
def test_a_norm_is_right_where_its_square_is_beyond_fp32(value):
    row = torch.full((300_000,), value)
    assert norm(row) == pytest.approx(float(row.double().norm()), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_norm_tells_of_every_value(value):
    row = torch.ones(300_000)
    row[123_456] = value
    assert not np.isfinite(norm(row))


@pytest.mark.parametrize(
    ("x", "norms"),
    [
        (np.ones((2, 3)), [1.0]),
        (np.ones((0, 3)), []),
        (np.ones((2, 3)), [1.0, float("nan")]),
        (np.array([[1.0], [np.nan]]), [1.0, 1.0]),
        (np.array([[1.0], [1e30], [-1e30]]), [1.0, 1.0, 1.0]),
    ],
)
def test_norms_must_be_those_of_the_rows(x, norms):
    with pytest.raises(ValueError, match="norm"):
        gram(rows_of(x), norms)
