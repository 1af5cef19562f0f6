"""Credit: what the projection removes, what it leaves, and that lengths and order do not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.protocol.round_record import BaselineVector
from fedgpt2.ranking.credit import credits
from tests.ranking.worlds import MOMENT, round_of, shuffled, with_products

D = 40
SEEDS = st.integers(0, 10_000)


def vectors(n: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(n, D)))


def basis(k: int, seed: int) -> list[tuple[BaselineVector, np.ndarray]]:
    return [(BaselineVector(kind="aggregate", age=i + 1), v) for i, v in enumerate(vectors(k, seed))]


def outside(x: np.ndarray, free: list[tuple[BaselineVector, np.ndarray]]) -> np.ndarray:
    """Dense reference: x less its projection."""
    if not free:
        return x
    q, _ = np.linalg.qr(np.stack([v for _, v in free]).T)
    return x - q @ (q.T @ x)


@given(SEEDS, st.integers(1, 5), st.integers(0, 4))
def test_credit_is_that_of_the_dense_projection(seed: int, n: int, k: int) -> None:
    xs, (g,), free = vectors(n, seed), vectors(1, seed + 1), basis(k, seed + 2)
    found = credits(round_of(1, {f"m{i}": x for i, x in enumerate(xs)}, g, free))
    for i, x in enumerate(xs):
        length, left = np.linalg.norm(x), outside(x, free)
        assert found[f"m{i}"].raw == pytest.approx(g @ x / length)
        assert found[f"m{i}"].added == pytest.approx(g @ left / length, abs=1e-10)
        assert found[f"m{i}"].residual_fraction == pytest.approx(np.linalg.norm(left) / length)


@given(SEEDS, st.integers(1, 4), st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
def test_any_combination_of_baseline_vectors_is_removed(seed: int, k: int, amounts: list[float]) -> None:
    (x, g), free = vectors(2, seed), basis(k, seed + 1)
    padded = x + sum(a * v for a, (_, v) in zip(amounts, free, strict=False))
    found = credits(round_of(1, {"plain": x, "padded": padded}, g, free))
    lengths = {"plain": np.linalg.norm(x), "padded": np.linalg.norm(padded)}
    worth = {name: found[name].added * lengths[name] for name in found}
    assert worth["padded"] == pytest.approx(worth["plain"], abs=1e-9 * lengths["padded"] * np.linalg.norm(g))


@given(SEEDS, st.integers(1, 4), st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_a_combination_of_baseline_vectors_has_no_credit(seed: int, k: int, amounts: list[float]) -> None:
    (g,), free = vectors(1, seed), basis(k, seed + 1)
    replayed = sum((a * v for a, (_, v) in zip(amounts, free, strict=False)), 1e-3 * free[0][1])
    found = credits(round_of(1, {"replay": replayed}, g, free))["replay"]
    assert abs(found.added) < 1e-6 * np.linalg.norm(g)
    assert found.residual_fraction < 1e-5


@given(SEEDS, st.floats(1e-6, 1e6))
def test_credit_does_not_grow_with_length(seed: int, by: float) -> None:
    (x, g), free = vectors(2, seed), basis(2, seed + 1)
    found = credits(round_of(1, {"one": x, "long": by * x}, g, free))
    assert found["long"].added == pytest.approx(found["one"].added, rel=1e-9, abs=1e-12)
    assert found["long"].raw == pytest.approx(found["one"].raw, rel=1e-12)
    twice = credits(round_of(1, {"one": x, "long": 2.0**7 * x}, g, free))
    assert twice["long"] == twice["one"]


@pytest.mark.parametrize("extra", ["same", "scaled", "sum", "zero", "near"])
def test_linearly_dependent_baseline_vectors_do_no_harm(extra: str) -> None:
    (x, g), free = vectors(2, 5), basis(2, 6)
    b, c = free[0][1], free[1][1]
    more = {
        "same": b,
        "scaled": -1e5 * b,
        "sum": b - 2.0 * c,
        "zero": np.zeros(D),
        "near": b + 1e-6 * vectors(1, 7)[0],
    }[extra]
    plain = credits(round_of(1, {"m": x}, g, free))["m"]
    for place in range(3):
        padded = [*free[:place], (MOMENT, more), *free[place:]]
        found = credits(round_of(1, {"m": x}, g, padded))["m"]
        assert found.added == pytest.approx(plain.added, abs=1e-5)
        assert found.residual_fraction == pytest.approx(plain.residual_fraction, abs=1e-5)


def test_products_that_are_off_by_millionths_move_no_credit_far() -> None:
    draw = np.random.default_rng(8)
    (x, g), free = vectors(2, 8), basis(3, 9)
    free.append((MOMENT, free[0][1] + 0.02 * vectors(1, 10)[0]))  # nearly the first
    exact = round_of(1, {"m": x}, g, free)
    assert exact.evidence.products is not None

    def off(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v * (1 + 2e-6 * draw.uniform(-1, 1)) for v in values)

    p = exact.evidence.products
    rough = with_products(
        exact,
        gradient=off(p.gradient),
        gradient_baseline=off(p.gradient_baseline),
        contributions_baseline=tuple(map(off, p.contributions_baseline)),
        baseline_gram=tuple(map(off, p.baseline_gram)),
    )
    found = credits(rough)["m"].added
    assert found == pytest.approx(credits(exact)["m"].added, abs=3e-3 * np.linalg.norm(g))


@given(SEEDS)
def test_order_changes_no_bit(seed: int) -> None:
    xs, (g,), free = vectors(6, seed), vectors(1, seed + 1), basis(3, seed + 2)
    made = round_of(1, {f"m{i}": x for i, x in enumerate(xs)}, g, free)
    other = shuffled(made, seed)
    assert credits(made) == credits(other)


def test_a_contribution_of_length_0_has_no_credit() -> None:
    x, g = vectors(2, 1)
    assert set(credits(round_of(1, {"m": x, "nothing": 0 * x}, g))) == {"m"}
    assert credits(round_of(1, {"nothing": 0 * x}, g)) == {}
