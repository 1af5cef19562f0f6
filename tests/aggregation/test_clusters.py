"""Copies have one vote; honest miners who agree are no copies."""

import numpy as np
import pytest
import torch

from fedgpt2.aggregation.clusters import clusters, one_vote
from fedgpt2.aggregation.gram import gram, norm

D = 400


def span_of(x: np.ndarray):
    rows = list(torch.from_numpy(np.asarray(x, dtype=np.float32)))
    return gram(rows, [norm(row) for row in rows])


def groups(x: np.ndarray) -> list[tuple[int, ...]]:
    """Those of more than one."""
    return [group for group in clusters(span_of(x)) if len(group) > 1]


def honest(n: int, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(D)
    return signal + noise * rng.standard_normal((n, D))


def test_every_row_is_in_one_group():
    x = honest(8)
    x[5] = x[2]
    assert clusters(span_of(x)) == [(0,), (1,), (2, 5), (3,), (4,), (6,), (7,)]


def test_near_copies_and_multiples_are_copies():
    x = honest(12)
    rng = np.random.default_rng(1)
    x[1] = x[0] + 0.02 * rng.standard_normal(D)
    x[2] = x[0] * 1e6
    x[3] = x[0] * 3
    x[7] = x[8]
    assert groups(x) == [(0, 1, 2, 3), (7, 8)]


def test_noise_enough_is_another_vote():
    x = honest(12)
    x[1] = x[0] + 0.3 * np.random.default_rng(1).standard_normal(D)
    assert groups(x) == []


@pytest.mark.parametrize("noise", [1e-3, 0.01, 0.1, 1.0, 10.0])
def test_miners_who_agree_are_no_copies(noise):
    assert groups(honest(16, noise)) == []


def test_nor_are_they_all_tied_together_by_hostile_rows_between_them():
    """The centre of near gradients is nearer to each than they are to each other."""
    x = honest(16, 0.02)
    x[12:] = x[:12].mean(0)
    assert groups(x) == [(12, 13, 14, 15)]


def test_a_chain_is_no_group():
    x = honest(16)
    x[1:4] = [x[0] + i * 0.08 / 3 * (x[9] - x[0]) for i in (1, 2, 3)]
    x[12:16] = [x[11] + i * 0.06 * (x[10] - x[11]) for i in (1, 2, 3, 4)]
    near = groups(x)
    assert (0, 1, 2, 3) in near
    assert not any(11 in group and 15 in group for group in near)


def test_when_most_coincide_none_is_a_copy():
    x = honest(6)
    x[1:5] = x[0]
    assert groups(x) == []


def test_those_who_send_nothing_are_one():
    x = honest(12)
    x[[2, 5, 6]] = 0.0
    assert groups(x) == [(2, 5, 6)]


@pytest.mark.parametrize("n", [1, 2])
def test_few_have_no_copies(n):
    assert groups(honest(1)[[0] * n]) == []


def test_a_group_votes_with_the_mean_of_its_members_at_the_shortest_length():
    x = honest(5)
    x[1], x[2] = 1e6 * x[0], 2.0 * x[0]
    span = span_of(x)
    voted = one_vote(span, [(0, 1, 2), (3,), (4,)])
    vectors = voted.mixing @ (span.scales[:, None] * x)
    assert np.allclose(vectors, x[[0, 3, 4]], rtol=1e-4)


def test_a_group_of_zeros_votes_zero():
    x = honest(4)
    x[:2] = 0.0
    assert np.isfinite(one_vote(span_of(x), [(0, 1), (2,), (3,)]).mixing).all()
