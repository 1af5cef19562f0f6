"""Pipelines at their edges: rows left out, few miners, too many hostile rows, rows in files, memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.aggregation import mean, pipeline
from fedgpt2.aggregation.combine import byzantine, enough
from fedgpt2.aggregation.coordinatewise import network
from fedgpt2.aggregation.registry import RULES
from tests.aggregation import dense

NAN, INF = float("nan"), float("inf")


def honest(n: int, d: int = 12, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def run(name: str, rows: list[torch.Tensor], f: int, **more):
    out = torch.full_like(rows[0], NAN)
    how = RULES[name](rows, more.pop("norms", None), f, out, **more)
    return out, how


@pytest.mark.parametrize("name", dense.PIPELINES)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38])
def test_a_row_that_is_not_finite_is_left_out_and_was_one_of_the_f(name, value):
    rows = honest(8)
    rows[2] = torch.full_like(rows[2], value)
    rows[5] = rows[5].index_fill(0, torch.tensor([3]), value)
    out, how = run(name, rows, 2)
    kept = [0, 1, 3, 4, 6, 7]
    alone, how_alone = run(name, [rows[i] for i in kept], 0)
    assert torch.equal(out, alone)
    assert how.weights[2] == how.weights[5] == 0
    assert [how.weights[i] for i in kept] == list(how_alone.weights)
    assert how.f == how_alone.f == 0
    assert how.groups == tuple((i,) for i in kept)


@pytest.mark.parametrize("name", dense.PIPELINES)
def test_where_no_row_is_left_there_is_no_aggregate(name):
    with pytest.raises(ValueError, match="norm"):
        run(name, [torch.full((3,), NAN)] * 4, 1)
    with pytest.raises(ValueError, match="norm"):
        RULES[name]([], None, 0, torch.empty(3))


@pytest.mark.parametrize("name", dense.PIPELINES)
def test_a_huge_row_is_aggregated_as_exactly_as_any(name):
    rows = honest(10)
    rows[4] = rows[4] * 1e30
    out, how = run(name, rows, 3)
    x = torch.stack(rows).double().numpy()
    reference = dense.aggregate(name, x, 3)
    if name == "clipped_mean" or how.weights[4] == 0:
        assert np.allclose(out.numpy(), reference, atol=1e-5)
    assert np.linalg.norm(out.numpy()) < 10


@pytest.mark.parametrize("name", dense.PIPELINES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("f", [0, 1, 2, 9])
def test_few_miners_and_any_f_give_something_sensible(name, n, f):
    """Where f is more than can be borne nothing is promised but a point among what was sent."""
    rows = honest(n)
    out, how = run(name, rows, f)
    x = torch.stack(rows)
    assert (out >= x.amin(0).clamp(max=0) - 1e-6).all()  # clipped rows are nearer to 0
    assert (out <= x.amax(0).clamp(min=0) + 1e-6).all()
    if n == 1:
        assert torch.allclose(out, rows[0])
        assert how.weights == pytest.approx((1.0,))


@pytest.mark.parametrize("name", dense.PIPELINES)
@pytest.mark.parametrize("value", [0.0, 1.5, 1e30, 1e-36])
def test_where_all_agree_the_aggregate_is_what_they_say(name, value):
    rows = [torch.full((9,), value) for _ in range(6)]
    out, how = run(name, rows, 1)
    assert torch.allclose(out, rows[0], rtol=1e-6, atol=0)
    assert len(how.groups) == 6


@pytest.mark.parametrize("name", dense.PIPELINES)
def test_where_nearly_all_send_nothing_it_is_nothing(name):
    rows = [torch.zeros(9) for _ in range(7)]
    rows[3] = torch.full((9,), 1e30)
    out, _ = run(name, rows, 2)
    assert not out.any()


@pytest.mark.parametrize("name", dense.PIPELINES)
def test_norms_of_the_caller_are_as_good_as_its_own(name):
    rows = honest(7)
    rows[1] = torch.full_like(rows[1], INF)
    out, how = run(name, rows, 2)
    norms = [float(row.double().norm()) for row in rows]
    again, how_again = run(name, rows, 2, norms=norms)
    assert torch.equal(out, again)
    assert how == how_again


def test_norms_that_hide_a_nan_are_refused():
    rows = honest(4)
    rows[0][3] = NAN
    with pytest.raises(ValueError, match="although its norm is finite"):
        run("default", rows, 1, norms=[1.0] * 4)


def test_copies_share_one_vote():
    rows = honest(9)
    alone, how_alone = run("default", rows, 2)
    copies, how = run("default", [*rows, rows[4].clone(), rows[4] * 2], 2)
    assert torch.allclose(alone, copies, atol=1e-5)
    assert (4, 9, 10) in how.groups
    shares = [how.weights[i] for i in (4, 9)]
    assert shares[0] == pytest.approx(shares[1])
    assert how.weights[4] + how.weights[9] + 2 * how.weights[10] == pytest.approx(how_alone.weights[4], rel=1e-4)
    assert how.f == 2


def test_buckets_are_drawn_anew_by_seed_and_only_by_seed():
    rows = honest(9)
    one, again, other = (run("bucketing_geometric_median", rows, 1, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("name", dense.PIPELINES)
def test_blocks_make_no_difference(name, monkeypatch):
    rows = honest(6, d=1000)
    whole, _ = run(name, rows, 1)
    monkeypatch.setattr(pipeline, "_VALUES", 6 * 17)
    monkeypatch.setattr(mean, "_BLOCK", 19)
    torch.testing.assert_close(run(name, rows, 1)[0], whole, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 24), st.integers(0, 2**32))
def test_a_network_sorts(m, seed):
    """By the 0-1 principle it sorts everything if it sorts zeros and ones."""
    bits = np.random.default_rng(seed).integers(0, 2, (m, 64))
    for low, high in network(m):
        assert low < high
        bits[[low, high]] = np.sort(bits[[low, high]], axis=0)
    assert (np.diff(bits, axis=0) >= 0).all()


@pytest.mark.parametrize("m", range(1, 11))
def test_a_small_network_sorts_every_row_of_zeros_and_ones(m):
    bits = (np.arange(2**m)[None, :] >> np.arange(m)[:, None]) & 1
    for low, high in network(m):
        bits[[low, high]] = np.sort(bits[[low, high]], axis=0)
    assert (np.diff(bits, axis=0) >= 0).all()


def test_a_weight_fp32_cannot_hold_is_applied_in_two():
    rows = [torch.full((4,), 1e36), torch.full((4,), 1.0)]
    out = mean.weighted_mean(rows, [1e-42 * 2.0**60, 0.0], torch.empty(4), [2.0**-60, 1.0])
    assert out.tolist() == pytest.approx([1e-6] * 4, rel=1e-5)


def test_a_row_without_weight_is_not_looked_at():
    rows = [torch.full((4,), NAN), torch.ones(4)]
    assert mean.weighted_mean(rows, [0.0, 0.5], torch.empty(4)).tolist() == [0.5] * 4
    assert mean.weighted_mean(rows, [0.0, 0.0], torch.full((4,), NAN)).tolist() == [0.0] * 4


def test_f_is_a_quarter_less_those_refused():
    assert [byzantine(n, 0) for n in (1, 3, 4, 7, 8, 16)] == [0, 0, 1, 1, 2, 4]
    assert byzantine(16, 3) == 1
    assert byzantine(16, 5) == 0


COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_silent_miners_lower_f_no_further_than_the_quorum_requires(
    admitted: int, refused: int, silent: int, unreachable: int
):
    asked = admitted + refused + silent + unreachable
    f = byzantine(asked, refused, silent, unreachable)
    none_hostile, all_hostile = byzantine(asked, refused), byzantine(asked, refused + silent)
    assert all_hostile <= f <= none_hostile
    assert f == none_hostile or not enough(admitted, f + 1)
    few = 2 * admitted < asked - refused
    assert f == (none_hostile if few else f)
    assert few or f == all_hostile or enough(admitted, f)


def test_four_late_of_sixteen_lower_f_from_four_to_three():
    assert byzantine(16, 0, 4) == 3
    assert byzantine(12, 0, 3) == 2
    assert byzantine(4, 0, 1) == 0


def test_a_handful_that_is_left_of_many_is_too_few():
    assert not enough(1, byzantine(16, 0, 15))
    assert not enough(7, byzantine(16, 0, 9))
    assert enough(8, byzantine(16, 0, 8))


def test_too_few_are_fewer_than_three_f_and_one():
    assert enough(1, 0)
    assert enough(4, 1)
    assert not enough(3, 1)
    assert not enough(12, 4)
    assert enough(13, 4)


@pytest.mark.parametrize("name", ["default", "nnm_trimmed_mean"])
def test_memory_is_that_of_the_contributions_which_may_lie_in_files(name, tmp_path: Path):
    """Peak resident memory over what torch takes: 16 mapped rows, the result, and blocks of them: 1.2 times."""
    n, d = 16, 1 << 21
    rng = np.random.default_rng(0)
    for i in range(n):
        rng.standard_normal(d, dtype=np.float32).tofile(tmp_path / f"{i}.bin")
    answer = subprocess.run(
        [sys.executable, "-m", "tests.aggregation.aggregate_files", name, str(tmp_path), str(n), str(d)],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(answer.stdout)
    assert result["peak_bytes"] < 1.2 * 4 * n * d
    assert 0 < result["norm"] < np.sqrt(d)
