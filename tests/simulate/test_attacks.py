"""Attack vectors against their papers' formulas and byzfl's documented examples."""

import math

import pytest
import torch

from fedgpt2.aggregation.registry import RULES
from fedgpt2.simulate.attacks import formulas as attacks

EXAMPLE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])

FORMULAS = [attacks.sign_flip, attacks.ipm, attacks.alie, attacks.min_max, attacks.mimic]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def honest(h: int = 12, d: int = 200, noise: float = 1.0) -> torch.Tensor:
    generator = rng(7)
    return torch.randn(d, generator=generator) + noise * torch.randn(h, d, generator=generator)


@pytest.mark.parametrize("attack", FORMULAS)
@pytest.mark.parametrize(("h", "f"), [(1, 1), (2, 1), (12, 4), (3, 3), (5, 0)])
def test_every_attack_gives_f_rows_and_leaves_the_honest_alone(attack, h, f):
    rows = honest(h)
    before = rows.clone()
    hostile = attack(rows, f, rng())
    assert hostile.shape == (f, 200)
    assert hostile.dtype == torch.float32
    assert hostile.isfinite().all()
    assert torch.equal(rows, before)
    assert torch.equal(hostile, attack(rows, f, rng()))
    hostile += 1  # rows of their own, no view of one
    assert torch.equal(rows, before)


def test_sign_flip_ipm_alie_and_mimic_give_byzfls_documented_vectors():
    assert attacks.sign_flip(EXAMPLE, 2, rng()).tolist() == [[-4, -5, -6]] * 2
    assert attacks.ipm(EXAMPLE, 1, rng(), strength=2.0).tolist() == [[-8, -10, -12]]
    assert attacks.alie(EXAMPLE, 1, rng(), strength=1.5).tolist() == [[8.5, 9.5, 10.5]]
    assert attacks.mimic(EXAMPLE, 1, rng()).tolist() in ([[1, 2, 3]], [[7, 8, 9]])


def test_alie_is_as_strong_as_its_paper_says_by_default():
    """n = 50, f = 24: s = 2 supporters, z_max = quantile at 24/26 (their example)."""
    rows = honest(26)
    hostile = attacks.alie(rows, 24, rng())
    strength = ((hostile[0] - rows.mean(0)) / rows.std(0)).mean()
    assert float(strength) == pytest.approx(1.4261, abs=1e-3)


@pytest.mark.parametrize("f", [1, 11, 12, 40])
def test_alie_stays_finite_with_any_number_of_hostile_miners(f):
    assert attacks.alie(honest(), f, rng()).isfinite().all()


def test_min_max_goes_as_far_as_honest_rows_are_apart():
    rows = honest()
    row = attacks.min_max(rows, 1, rng())[0]
    limit = max(float((a - b).norm()) for a in rows for b in rows)
    reach = max(float((a - row).norm()) for a in rows)
    assert 0.999 * limit <= reach <= limit
    direction = torch.nn.functional.cosine_similarity(rows.mean(0) - row, rows.std(0), dim=0)
    assert float(direction) == pytest.approx(1.0, abs=1e-5)


def test_mimic_sends_the_row_furthest_along_what_differs_most():
    rows = honest(noise=0.1)
    rows[3] += 5 * torch.randn(200, generator=rng(3))
    assert torch.equal(attacks.mimic(rows, 2, rng())[1], rows[3])


def test_rows_apart_are_copies_no_longer():
    rows = honest()
    copies = attacks.sign_flip(rows, 4, rng())
    spread = attacks.apart(copies, rows, rng())
    assert float((spread - copies).norm(dim=1).max()) < 0.3 * float(copies[0].norm())
    out = torch.empty(200)
    together = RULES["default"]([*rows, *copies], None, 4, out)
    separate = RULES["default"]([*rows, *spread], None, 4, out)
    assert len(together.groups) == 13
    assert len(separate.groups) == 16


def test_a_huge_row_moves_apart_by_no_more_than_an_honest_one_is_long():
    rows = honest()
    huge = attacks.ipm(rows, 2, rng(), strength=1e6)
    moved = (attacks.apart(huge, rows, rng()) - huge).norm(dim=1)
    assert float(moved.max()) < 0.5 * float(rows.norm(dim=1).median())


class Counting:
    """A defence that counts how often it is tried."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def __call__(self, rows: torch.Tensor, f: int) -> torch.Tensor:
        self.calls += 1
        out = torch.empty(rows.shape[1])
        RULES[self.name](list(rows), None, f, out)
        return out


@pytest.mark.parametrize("name", ["default", "trimmed_mean", "multi_krum"])
def test_an_adaptive_attack_is_no_weaker_than_a_fixed_one(name):
    rows, f = honest(noise=3.0), 4

    def damage(hostile: torch.Tensor) -> float:
        return float((Counting(name)(torch.cat([rows, hostile]), f) - rows.mean(0)).norm())

    for adaptive, fixed in ((attacks.opt_ipm, attacks.ipm), (attacks.opt_alie, attacks.alie)):
        defence = Counting(name)
        best = damage(adaptive(rows, f, rng(), defence))
        assert defence.calls == 20
        for strength in (0.1, 0.5, 1.0, 2.0, 10.0):
            hostile = attacks.apart(fixed(rows, f, rng(), strength=strength), rows, rng(1))
            assert best >= 0.93 * damage(hostile), (adaptive, strength)


def test_the_search_is_as_short_as_it_is_told():
    defence = Counting("clipped_mean")
    attacks.opt_ipm(honest(), 2, rng(), defence, evaluations=7)
    assert defence.calls == 7


def test_strength_is_found_where_the_damage_is():
    """A plain mean has no limit: the strongest of the range."""
    rows = honest()
    hostile = attacks.opt_ipm(rows, 4, rng(), lambda sent, f: sent.mean(0))
    assert float(hostile.norm(dim=1).mean() / rows.mean(0).norm()) > 90
    assert math.isclose(float(torch.cosine_similarity(hostile[0], rows.mean(0), dim=0)), -1.0, abs_tol=0.05)
