"""Inner products in one pass."""

import numpy as np
import pytest
import torch
from fedgpt2.ranking.measure import KEPT, inner, measure
from hypothesis import given
from hypothesis import strategies as st

from tests.ranking.worlds import AGGREGATE, MOMENT, products


def rows(n: int, d: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def near(one: object, other: object, lengths: float) -> bool:
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() <= 3e-6 * lengths)


@given(st.integers(1, 5), st.integers(1, 300_000), st.integers(0, 3))
def test_products_are_right_to_a_few_millionths(n: int, d: int, k: int) -> None:
    xs, free = rows(n, d, 1), list(zip([AGGREGATE, MOMENT, AGGREGATE], rows(3, d, 2), strict=True))[:k]
    (g,) = rows(1, d, 3)
    found = measure([f"m{i}" for i in range(n)], xs, free, g)
    right = products(
        {f"m{i}": x.double().numpy() for i, x in enumerate(xs)},
        g.double().numpy(),
        [(kind, vector.double().numpy()) for kind, vector in free],
    )
    assert found.miners == right.miners
    assert near(found.gradient, right.gradient, d)
    assert near(found.gradient_norm**2, right.gradient_norm**2, d)
    for one, other in ((found.free_gram, right.free_gram), (found.gram, right.gram)):
        assert one is not None
        assert other is not None
        assert all(near(a, b, d) for a, b in zip(one, other, strict=True))
    if k:
        assert near(found.gradient_free, right.gradient_free, d)
        assert near(found.contributions_free, right.contributions_free, d)


@given(st.integers(1, 200_000), st.integers(1, 4))
def test_a_few_rows_and_all_rows_give_the_same(d: int, first: int) -> None:
    made = rows(5, d)
    whole = inner(made, 5)
    assert near(inner(made, first), whole[:first], d)
    assert near(whole, whole.T, d)


def test_a_gram_matrix_at_hand_is_taken() -> None:
    xs, (g,) = rows(3, 50), rows(1, 50, 9)
    given_ = np.arange(9.0).reshape(3, 3)
    assert measure(["a", "b", "c"], xs, [], g, given_).gram == ((0.0,), (3.0, 4.0), (6.0, 7.0, 8.0))


def test_of_many_the_gram_matrix_is_not_kept() -> None:
    xs, (g,) = rows(KEPT + 1, 8), rows(1, 8, 9)
    found = measure([f"m{i}" for i in range(KEPT + 1)], xs, [(MOMENT, g)], g)
    assert found.gram is None
    assert len(found.gradient) == KEPT + 1


@pytest.mark.parametrize("scale", [1e-15, 1e-22, 1e25])
def test_lengths_that_fp32_cannot_square_are_no_matter(scale: float) -> None:
    xs, (g,) = [x * scale for x in rows(2, 100)], rows(1, 100, 9)
    found = measure(["a", "b"], xs, [], g)
    assert found.gram is not None
    assert found.gram[1][0] == pytest.approx(float(xs[0].double() @ xs[1].double()), rel=1e-5)


def test_a_contribution_that_is_no_number_is_left_out_and_a_gradient_refused() -> None:
    xs, (g,) = rows(3, 100), rows(1, 100, 9)
    xs[1][7] = torch.nan
    found = measure(["a", "b", "c"], xs, [(MOMENT, g)], g)
    assert found.miners == ("a", "c")
    assert found.gram is not None
    assert [len(row) for row in found.gram] == [1, 2]
    with pytest.raises(ValueError, match="not finite"):
        measure(["a"], xs[:1], [], g * torch.inf)


def test_nobody_admitted_is_no_contribution() -> None:
    (g,) = rows(1, 100)
    assert measure([], [], [], g).gradient == ()
    assert inner([g], 1).shape == (1, 1)
