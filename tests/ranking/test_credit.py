"""Credit: what projection takes out, what it leaves, and that lengths and order do not matter."""

import numpy as np
import pytest
from fedgpt2.ranking.evidence import Free
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import UsageError
from fedgpt2.ranking.credit import check_rule, credits, leave_one_out
from tests.ranking.worlds import AGGREGATE, MOMENT, evidence, rule, shuffled

D = 40
SEEDS = st.integers(0, 10_000)
BOTH = rule(basis="aggregate+moment", recent=8)


def vectors(n: int, seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(n, D)))


def basis(k: int, seed: int) -> list[tuple[Free, np.ndarray]]:
    return [(Free(kind="aggregate", age=i + 1), v) for i, v in enumerate(vectors(k, seed))]


def outside(x: np.ndarray, free: list[tuple[Free, np.ndarray]]) -> np.ndarray:
    """Dense reference: x less its projection."""
    if not free:
        return x
    q, _ = np.linalg.qr(np.stack([v for _, v in free]).T)
    return x - q @ (q.T @ x)


@given(SEEDS, st.integers(1, 5), st.integers(0, 4))
def test_credit_is_that_of_the_dense_projection(seed: int, n: int, k: int) -> None:
    xs, (g,), free = vectors(n, seed), vectors(1, seed + 1), basis(k, seed + 2)
    found = credits(evidence(1, {f"m{i}": x for i, x in enumerate(xs)}, g, free), BOTH)
    for i, x in enumerate(xs):
        length, left = np.linalg.norm(x), outside(x, free)
        assert found[f"m{i}"].raw == pytest.approx(g @ x / length)
        assert found[f"m{i}"].added == pytest.approx(g @ left / length, abs=1e-10)
        assert found[f"m{i}"].own == pytest.approx(np.linalg.norm(left) / length)


@given(SEEDS, st.integers(1, 4), st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
def test_any_combination_of_free_vectors_is_taken_out(seed: int, k: int, amounts: list[float]) -> None:
    (x, g), free = vectors(2, seed), basis(k, seed + 1)
    padded = x + sum(a * v for a, (_, v) in zip(amounts, free, strict=False))
    found = credits(evidence(1, {"plain": x, "padded": padded}, g, free), BOTH)
    lengths = {"plain": np.linalg.norm(x), "padded": np.linalg.norm(padded)}
    worth = {name: found[name].added * lengths[name] for name in found}
    assert worth["padded"] == pytest.approx(worth["plain"], abs=1e-9 * lengths["padded"] * np.linalg.norm(g))


@given(SEEDS, st.integers(1, 4), st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_what_is_free_alone_is_worth_nothing(seed: int, k: int, amounts: list[float]) -> None:
    (g,), free = vectors(1, seed), basis(k, seed + 1)
    replayed = sum((a * v for a, (_, v) in zip(amounts, free, strict=False)), 1e-3 * free[0][1])
    found = credits(evidence(1, {"replay": replayed}, g, free), BOTH)["replay"]
    assert abs(found.added) < 1e-6 * np.linalg.norm(g)
    assert found.own < 1e-5


@given(SEEDS, st.floats(1e-6, 1e6))
def test_credit_does_not_grow_with_length(seed: int, by: float) -> None:
    (x, g), free = vectors(2, seed), basis(2, seed + 1)
    found = credits(evidence(1, {"one": x, "long": by * x}, g, free), BOTH)
    assert found["long"].added == pytest.approx(found["one"].added, rel=1e-9, abs=1e-12)
    assert found["long"].raw == pytest.approx(found["one"].raw, rel=1e-12)
    twice = credits(evidence(1, {"one": x, "long": 2.0**7 * x}, g, free), BOTH)
    assert twice["long"] == twice["one"]


@pytest.mark.parametrize("score", ["projected", "leave_one_out"])
def test_lengths_do_not_matter_to_the_round_either(score: str) -> None:
    xs, (g,), free = vectors(4, 1), vectors(1, 2), basis(2, 3)
    plain = evidence(1, {f"m{i}": x for i, x in enumerate(xs)}, g, free)
    scaled = evidence(1, {f"m{i}": x * 3.0 ** (i - 1) for i, x in enumerate(xs)}, g, free)
    names = [f"m{i}" for i in range(4)]
    if score == "projected":
        one, other = ({h: c.added for h, c in credits(e, BOTH).items()} for e in (plain, scaled))
    else:
        one, other = (leave_one_out(e, BOTH, names) for e in (plain, scaled))
    assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("extra", ["same", "scaled", "sum", "zero", "near"])
def test_free_vectors_that_say_the_same_twice_do_no_harm(extra: str) -> None:
    (x, g), free = vectors(2, 5), basis(2, 6)
    b, c = free[0][1], free[1][1]
    more = {
        "same": b,
        "scaled": -1e5 * b,
        "sum": b - 2.0 * c,
        "zero": np.zeros(D),
        "near": b + 1e-6 * vectors(1, 7)[0],
    }[extra]
    plain = credits(evidence(1, {"m": x}, g, free), BOTH)["m"]
    for place in range(3):
        padded = [*free[:place], (MOMENT, more), *free[place:]]
        found = credits(evidence(1, {"m": x}, g, padded), BOTH)["m"]
        assert found.added == pytest.approx(plain.added, abs=1e-5)
        assert found.own == pytest.approx(plain.own, abs=1e-5)


def test_products_that_are_off_by_millionths_move_no_credit_far() -> None:
    draw = np.random.default_rng(8)
    (x, g), free = vectors(2, 8), basis(3, 9)
    free.append((MOMENT, free[0][1] + 0.02 * vectors(1, 10)[0]))  # nearly the first
    exact = evidence(1, {"m": x}, g, free)
    assert exact.products is not None

    import msgspec

    def off(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(v * (1 + 2e-6 * draw.uniform(-1, 1)) for v in values)

    p = exact.products
    rough = msgspec.structs.replace(
        p,
        gradient=off(p.gradient),
        gradient_free=off(p.gradient_free),
        contributions_free=tuple(map(off, p.contributions_free)),
        free_gram=tuple(map(off, p.free_gram)),
    )
    found = credits(msgspec.structs.replace(exact, products=rough), BOTH)["m"].added
    assert found == pytest.approx(credits(exact, BOTH)["m"].added, abs=3e-3 * np.linalg.norm(g))


def test_the_rule_says_what_is_free() -> None:
    (x, g), (first, second), (moment,) = vectors(2, 1), vectors(2, 2), vectors(1, 3)
    free = [(AGGREGATE, first), (Free(kind="aggregate", age=2), second), (MOMENT, moment)]
    made = evidence(1, {"m": x}, g, free)
    for chosen, names in (
        (rule(basis="none"), []),
        (rule(basis="aggregate", recent=1), [0]),
        (rule(basis="aggregate", recent=2), [0, 1]),
        (rule(basis="moment", recent=2), [2]),
        (rule(basis="aggregate+moment", recent=1), [0, 2]),
        (rule(basis="aggregate+moment", recent=16), [0, 1, 2]),
    ):
        left = outside(x, [free[i] for i in names])
        assert credits(made, chosen)["m"].added == pytest.approx(g @ left / np.linalg.norm(x))


@given(SEEDS)
def test_order_changes_no_bit(seed: int) -> None:
    xs, (g,), free = vectors(6, seed), vectors(1, seed + 1), basis(3, seed + 2)
    made = evidence(1, {f"m{i}": x for i, x in enumerate(xs)}, g, free)
    other = shuffled(made, seed)
    assert credits(made, BOTH) == credits(other, BOTH)
    names = [f"m{i}" for i in range(6)]
    assert leave_one_out(made, BOTH, names) == leave_one_out(other, BOTH, names)


@given(SEEDS, st.integers(0, 2))
def test_leave_one_out_is_what_the_mean_direction_loses(seed: int, k: int) -> None:
    xs, (g,), free = vectors(4, seed), vectors(1, seed + 1), basis(k, seed + 2)
    units = [outside(x, free) / np.linalg.norm(x) for x in xs]

    def use(members: list[int]) -> float:
        mean = np.mean([units[i] for i in members], axis=0)
        return float(outside(g, free) @ mean / np.linalg.norm(mean))

    found = leave_one_out(
        evidence(1, {f"m{i}": x for i, x in enumerate(xs)}, g, free), BOTH, [f"m{i}" for i in range(4)]
    )
    for i in range(4):
        expected = use([0, 1, 2, 3]) - use([j for j in range(4) if j != i])
        assert found[f"m{i}"] == pytest.approx(expected, abs=1e-9)


def test_leave_one_out_of_one_is_its_all_and_needs_the_gram_matrix() -> None:
    x, g = vectors(2, 1)
    alone = leave_one_out(evidence(1, {"m": x}, g), BOTH, ["m"])
    assert alone == {"m": pytest.approx(g @ x / np.linalg.norm(x))}
    assert leave_one_out(evidence(1, {"m": x}, g, gram=False), BOTH, ["m"]) == {}
    assert leave_one_out(evidence(1, {"m": x, "n": -x}, g), BOTH, ["m", "n"])["m"] == pytest.approx(
        g @ x / np.linalg.norm(x)
    )
    assert leave_one_out(evidence(1, {"m": x}, g), BOTH, []) == {}


def test_no_length_is_no_credit() -> None:
    x, g = vectors(2, 1)
    assert set(credits(evidence(1, {"m": x, "nothing": 0 * x}, g), BOTH)) == {"m"}
    assert credits(evidence(1, {"nothing": 0 * x}, g), BOTH) == {}


def test_names_that_are_none_are_refused() -> None:
    check_rule(rule())
    check_rule(rule(basis="none"))
    check_rule(rule(basis="mean+update+score"))
    with pytest.raises(UsageError, match="score best: no such score"):
        check_rule(rule(score="best"))
    with pytest.raises(UsageError, match="all is nothing"):
        check_rule(rule(basis="moment+all"))
