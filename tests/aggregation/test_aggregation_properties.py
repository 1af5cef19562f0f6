"""What holds for every rule, whatever is sent: 1,000 examples each for what a hostile miner could exploit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedgpt2.aggregation.coordinatewise import CoordinatewiseRule
from fedgpt2.aggregation.pipeline import Aggregate
from fedgpt2.aggregation.registry import RULES
from tests.aggregation import dense

few = settings(max_examples=50)
INF, NAN = float("inf"), float("nan")
HOSTILE = (NAN, INF, -INF, 1e30, -1e30, 3.4e38, -3.4e38, 1e19, 1e-45, 0.0, 1e6, -1.0)

# |aggregate| <= C max |honest row| with at most f hostile ones of n >= 3 f + 1, C by rule (docs/aggregation.md)
BOUNDS = {
    "default": lambda n: 1,
    "clipped_mean": lambda n: 1,
    "median": lambda n: math.sqrt(n),
    "trimmed_mean": lambda n: math.sqrt(n),
    "krum": lambda n: 1 + 2 * math.sqrt(n),
    "multi_krum": lambda n: 1 + 2 * math.sqrt(n),
    "geometric_median": lambda n: 7 * n,
    "centered_clipping": lambda n: 191,
    "nnm_trimmed_mean": lambda n: 3 * math.sqrt(n),
    "nnm_median": lambda n: 3 * math.sqrt(n),
    "arc_nnm_trimmed_mean": lambda n: 3 * math.sqrt(n),
    "bucketing_geometric_median": lambda n: 7 * n,
}


def run(name: str, x: np.ndarray, f: int, seed: int = 0) -> tuple[np.ndarray, Aggregate]:
    rows = list(torch.from_numpy(x.astype(np.float32)))
    out = torch.full((x.shape[1],), NAN)
    aggregate = RULES[name](rows, None, f, out, seed)
    return out.numpy().astype(np.float64), aggregate


def test_every_rule_has_a_bound_and_a_reference():
    assert set(BOUNDS) == set(dense.PIPELINES) == set(RULES.names) - {"mean"}


@st.composite
def attacked(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Rows [n, d] of which the first f are hostile, f with n >= 3 f + 1, and a seed."""
    n, d, seed = draw(st.integers(1, 16)), draw(st.integers(1, 6)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    f = draw(st.integers(0, (n - 1) // 3))
    x = (rng.standard_normal((n, d)) + draw(st.sampled_from([0.0, 3.0]))) * 10.0 ** draw(st.integers(-20, 20))
    if draw(st.integers(0, 9)) == 0:
        x[f:] = x[-1]
    for i in range(f):
        value = draw(st.sampled_from(HOSTILE))
        kind = draw(st.sampled_from(["all", "one", "times honest"]))
        if kind == "all":
            x[i] = value
        elif kind == "one":
            x[i, rng.integers(d)] = value
        else:
            x[i] = value * x[rng.integers(f, n)]
    with np.errstate(over="ignore"):
        return x.astype(np.float32), f, seed


@pytest.mark.timeout(300)  # twelve rules, a thousand times each
@settings(max_examples=1000)
@given(attacked())
def test_no_hostile_row_makes_an_aggregate_unbounded(sent):
    x, f, seed = sent
    longest = np.linalg.norm(x[f:].astype(np.float64), axis=1).max()
    for name, bound in BOUNDS.items():
        out, how = run(name, x, f, seed)
        assert np.isfinite(out).all(), name
        assert np.linalg.norm(out) <= bound(len(x)) * longest * 1.001, name
        assert np.isfinite(how.weights).all(), name
        assert 0 <= how.f <= f, name


@settings(max_examples=1000)
@given(attacked(), st.randoms(use_true_random=False))
def test_more_hostile_rows_than_f_leave_it_finite_all_the_same(sent, random):
    x, f, seed = sent
    assume(len(x) > f)
    name = random.choice(list(dense.PIPELINES))
    out, how = run(name, x, random.randrange(f + 1), seed)
    assert np.isfinite(out).all()
    assert min(how.weights) >= 0
    assert sum(how.weights) <= 1 + 1e-6


@st.composite
def gradients(draw: st.DrawFn, fewest: int = 1) -> tuple[np.ndarray, int]:
    """Independent rows [n, d] and an f; the values are of few bits, so that sums with others are exact."""
    n, seed = draw(st.integers(fewest, 13)), draw(st.integers(0, 2**32))
    x = np.random.default_rng(seed).standard_normal((n, draw(st.integers(8, 24))))
    return np.round(x * 2**14) / 2**14, draw(st.integers(0, (n - 1) // 3))


def close(a: np.ndarray, b: np.ndarray, scale: float) -> bool:
    return bool(np.abs(a - b).max() <= 2e-5 * scale)


@pytest.mark.parametrize(
    "name", [name for name in dense.PIPELINES if "bucketing" not in name]
)  # which draws its own order
@few
@given(gradients(), st.randoms(use_true_random=False))
def test_the_order_of_contributions_does_not_matter(name, rows, random):
    x, f = rows
    order = random.sample(range(len(x)), len(x))
    out, how = run(name, x, f)
    again, how_again = run(name, x[order], f)
    assert close(out, again, np.abs(x).max())
    assert np.allclose(np.array(how.weights)[order], how_again.weights, atol=1e-4)


@pytest.mark.parametrize("name", dense.PIPELINES)
@few
@given(gradients(), st.integers(-80, 80), st.integers(0, 9))
def test_it_scales_with_what_is_sent(name, rows, power, seed):
    """Bit by bit for powers of two; the smoothing of distances, too, is relative."""
    x, f = rows
    out, how = run(name, x, f, seed)
    scaled, how_scaled = run(name, x * 2.0**power, f, seed)
    assert np.array_equal(out * 2.0**power, scaled)
    assert how.weights == how_scaled.weights


MOVES_ALONG = [name for name in dense.PIPELINES if "clipped" not in name and "arc" not in name and name != "default"]


@pytest.mark.parametrize("name", MOVES_ALONG)
@few
@given(gradients(), st.integers(-(2**14), 2**14))
def test_it_moves_along_with_what_is_sent(name, rows, by):
    x, f = rows
    shift = np.full(x.shape[1], by / 2**12)
    out, how = run(name, x, f)
    moved, how_moved = run(name, x + shift, f)
    assume(len(how.groups) == len(how_moved.groups) == len(x))  # what is near depends on the length
    assert close(out + shift, moved, np.abs(x + shift).max())


@pytest.mark.parametrize("name", dense.PIPELINES)
@few
@given(gradients(), st.integers(0, 9))
def test_it_agrees_with_a_dense_reference(name, rows, seed):
    x, f = rows
    out, how = run(name, x, f, seed)
    assume(len(how.groups) == len(x))
    dense_out = dense.aggregate(name, x, f, seed)
    if name in ("default", "geometric_median", "bucketing_geometric_median"):  # where several points are nearest to all
        staged = dense.staged(name, x, f, seed)
        far, near = (np.linalg.norm(staged - point, axis=1).sum() for point in (out, dense_out))
        assert far <= near * (1 + 1e-5) + 1e-5
    else:
        assert close(out, dense_out, np.abs(x).max())


SPANS = [name for name in dense.PIPELINES if not isinstance(RULES[name].rule, CoordinatewiseRule)]


@pytest.mark.parametrize("name", SPANS)
@few
@given(gradients(), st.integers(0, 9))
def test_its_weights_tell_how_the_aggregate_was_formed(name, rows, seed):
    x, f = rows
    out, how = run(name, x, f, seed)
    assert close(np.array(how.weights) @ x, out, np.abs(x).max())
