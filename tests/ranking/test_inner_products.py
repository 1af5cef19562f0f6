"""Inner products in one pass."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.inner_products import inner, measure_products
from tests.ranking.worlds import AGGREGATE, MOMENT, products


def rows(n: int, d: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def near(one: object, other: object, lengths: float) -> bool:
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() <= 3e-6 * lengths)


@given(st.integers(1, 5), st.integers(1, 300_000), st.integers(0, 3))
def test_products_are_right_to_a_few_millionths(n: int, d: int, k: int) -> None:
    xs, free = rows(n, d, 1), list(zip([AGGREGATE, MOMENT, AGGREGATE], rows(3, d, 2), strict=True))[:k]
    (g,) = rows(1, d, 3)
    found = measure_products([f"m{i}" for i in range(n)], xs, free, g)
    right = products(
        {f"m{i}": x.double().numpy() for i, x in enumerate(xs)},
        g.double().numpy(),
        [(kind, vector.double().numpy()) for kind, vector in free],
    )
    assert found.miners == right.miners
    assert near(found.gradient, right.gradient, d)
    assert near(found.gradient_norm**2, right.gradient_norm**2, d)
    assert all(near(a, b, d) for a, b in zip(found.baseline_gram, right.baseline_gram, strict=True))
    if k:
        assert near(found.gradient_baseline, right.gradient_baseline, d)
        assert near(found.contributions_baseline, right.contributions_baseline, d)


@given(st.integers(1, 200_000), st.integers(1, 4))
def test_a_few_rows_and_all_rows_give_the_same(d: int, first: int) -> None:
    made = rows(5, d)
    whole = inner(made, 5)
    assert near(inner(made, first), whole[:first], d)
    assert near(whole, whole.T, d)


@pytest.mark.parametrize("scale", [1e-15, 1e-22, 1e25])
def test_lengths_whose_square_fp32_cannot_hold(scale: float) -> None:
    xs, (g,) = [x * scale for x in rows(2, 100)], rows(1, 100, 9)
    found = measure_products(["a", "b"], xs, [], g)
    assert found.gradient[0] == pytest.approx(float(g.double() @ xs[0].double()), rel=1e-5)


def test_a_contribution_that_is_not_finite_is_left_out_and_such_a_gradient_refused() -> None:
    xs, (g,) = rows(3, 100), rows(1, 100, 9)
    xs[1][7] = torch.nan
    found = measure_products(["a", "b", "c"], xs, [(MOMENT, g)], g)
    assert found.miners == ("a", "c")
    assert len(found.gradient) == len(found.contributions_baseline) == 2
    with pytest.raises(ValueError, match="not finite"):
        measure_products(["a"], xs[:1], [], g * torch.inf)


def test_no_admitted_miner() -> None:
    (g,) = rows(1, 100)
    assert measure_products([], [], [], g).gradient == ()
    assert inner([g], 1).shape == (1, 1)
