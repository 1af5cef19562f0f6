"""Attack formulas against their papers and byzfl's documented examples, and the search of adaptive attacks."""

from functools import partial

import pytest
import torch

from fedgpt2.aggregation.registry import pipeline
from fedgpt2.simulate.attacks import formulas
from fedgpt2.simulate.attacks.from_gradients import SameRow
from fedgpt2.simulate.attacks.registry import build_attack
from tests.simulate.stage import Stage, cosine, play

EXAMPLE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])

FORMULAS = [formulas.minus_mean, formulas.sign_flip, formulas.ipm, formulas.alie, formulas.min_max, formulas.mimic]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def honest(h: int = 12, d: int = 200, noise: float = 1.0) -> torch.Tensor:
    generator = rng(7)
    return torch.randn(d, generator=generator) + noise * torch.randn(h, d, generator=generator)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize(("h", "f"), [(1, 1), (2, 1), (12, 4), (3, 3)])
def test_every_formula_gives_a_row_and_leaves_the_honest_alone(formula, h, f):
    rows = honest(h)
    before = rows.clone()
    hostile = formula(rows, f)
    assert hostile.shape == (200,)
    assert hostile.dtype == torch.float32
    assert hostile.isfinite().all()
    assert torch.equal(rows, before)
    assert torch.equal(hostile, formula(rows, f))


def test_sign_flip_ipm_alie_and_mimic_give_byzfls_documented_vectors():
    assert formulas.minus_mean(EXAMPLE, 2).tolist() == [-4, -5, -6]
    assert formulas.ipm(EXAMPLE, 1, strength=2.0).tolist() == [-8, -10, -12]
    assert formulas.alie(EXAMPLE, 1, strength=1.5).tolist() == [8.5, 9.5, 10.5]
    assert formulas.mimic(EXAMPLE, 1).tolist() in ([1, 2, 3], [7, 8, 9])


def test_alie_is_as_strong_as_its_paper_says_by_default():
    """n = 50, f = 24: s = 2 supporters, z_max = quantile at 24/26 (their example)."""
    rows = honest(26)
    strength = ((formulas.alie(rows, 24) - rows.mean(0)) / rows.std(0)).mean()
    assert float(strength) == pytest.approx(1.4261, abs=1e-3)


@pytest.mark.parametrize("f", [1, 11, 12, 40])
def test_alie_stays_finite_with_any_number_of_hostile_miners(f):
    assert formulas.alie(honest(), f).isfinite().all()


def test_min_max_goes_as_far_as_honest_rows_are_apart():
    rows = honest()
    row = formulas.min_max(rows, 1)
    limit = max(float((a - b).norm()) for a in rows for b in rows)
    reach = max(float((a - row).norm()) for a in rows)
    assert 0.999 * limit <= reach <= limit
    direction = torch.nn.functional.cosine_similarity(rows.mean(0) - row, rows.std(0), dim=0)
    assert float(direction) == pytest.approx(1.0, abs=1e-5)


def test_mimic_sends_the_row_furthest_along_what_differs_most():
    rows = honest(noise=0.1)
    rows[3] += 5 * torch.randn(200, generator=rng(3))
    assert torch.equal(formulas.mimic(rows, 2), rows[3])


@pytest.mark.parametrize("name", ["default", "trimmed_mean", "multi_krum"])
@pytest.mark.parametrize(("adaptive", "fixed"), [("opt_ipm", formulas.ipm), ("opt_alie", formulas.alie)])
def test_an_adaptive_attack_is_no_weaker_than_a_fixed_one(name, adaptive, fixed):
    stage = Stage(noise=3.0, pipeline=pipeline(name))
    rows = stage.honest(1)

    def damage(attack) -> float:
        return float((stage.defend(torch.cat([rows, *play(attack, stage, 1)]), 3) - rows.mean(0)).norm())

    best = damage(build_attack(adaptive))
    for strength in (0.1, 0.5, 1.0, 2.0, 10.0):
        assert best >= 0.93 * damage(SameRow(partial(fixed, strength=strength))), strength


def test_the_search_is_as_short_as_it_is_told():
    tried = []
    formulas.search(lambda strength: tried.append(strength) or strength, 7, (0.1, 100.0))
    assert len(tried) == 7


def test_strength_is_found_where_the_damage_is():
    """A plain mean has no limit: the strongest of the range."""
    stage = Stage(pipeline=None)
    (sent,) = play(build_attack("opt_ipm"), stage, 1)
    mean = stage.honest(1).mean(0)
    assert float(sent.norm(dim=1).mean() / mean.norm()) > 90
    assert cosine(sent[0], mean) == pytest.approx(-1.0, abs=0.05)
