"""The search by inner products against the same search over rows written out, and what it costs."""

import numpy as np
import pytest
import torch

from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.aggregation.registry import RULES, pipeline
from fedgpt2.aggregation.rules import Mean
from fedgpt2.simulate.attacks import formulas as attacks
from fedgpt2.simulate.attacks import from_gradients as vectors
from fedgpt2.simulate.attacks import probe as probing
from fedgpt2.simulate.attacks.gradient_stats import moments
from fedgpt2.simulate.attacks.probe import probe
from fedgpt2.simulate.attacks.registry import build_attack
from tests.simulate.stage import D, Stage, rows

PIPELINES = {name: pipeline(name) for name in RULES.names if name != "mean"} | {"mean": Pipeline((), Mean())}


def written_out(stage: Stage, honest: torch.Tensor, noise: list[torch.Tensor], mean: float, std: float) -> torch.Tensor:
    """The rows of a candidate."""
    row = mean * honest.mean(0) + std * honest.std(0)
    return torch.stack([row + 0.25 * row.norm() * each for each in noise])


def dense_damage(rule: Pipeline, honest: torch.Tensor, sent: torch.Tensor) -> float:
    """|aggregate - honest mean|."""
    out = torch.empty(honest.shape[1])
    rule([*honest, *sent], None, 3, out)
    return float((out - honest.mean(0)).norm())


@pytest.mark.parametrize("noise", [0.05, 2.0])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_trial_finds_the_damage_that_is_done(name, noise):
    stage = Stage(noise=noise)
    honest = stage.honest(1)
    direction = [Stage._drawn(i) for i in range(3)]
    rule = probe(honest, direction, PIPELINES[name], torch.Generator())
    for mean, std in [(-0.1, 0.0), (-0.5, 0.0), (-3.0, 0.0), (-100.0, 0.0), (1.0, 0.3), (1.0, 2.0), (1.0, -1.5)]:
        wanted = dense_damage(PIPELINES[name], honest, written_out(stage, honest, direction, mean, std))
        assert rule.damage(mean, std) == pytest.approx(wanted, rel=1e-3, abs=1e-5), (mean, std)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("attack", ["opt_ipm", "opt_alie"])
def test_the_search_sends_what_a_dense_one_would(name, attack):
    """Same noise, same strengths tried, the same one chosen, the same rows."""
    stage = Stage(pipeline=PIPELINES[name])
    view, honest = stage.view(1), stage.honest(1)
    by_products = build_attack(attack)
    assert isinstance(by_products, vectors.Strongest)
    noise = vectors.SendBuffers().noise(view)

    def worst(line: vectors.Line) -> tuple[float, float, float]:
        def damage(x: float) -> float:
            return dense_damage(PIPELINES[name], honest, written_out(stage, honest, noise, *line.at(x)))

        done, x = attacks.search(damage, line.evaluations, line.between)
        return (done, *line.at(x))

    done, mean, std = max(worst(line) for line in by_products.lines)
    sent = rows(by_products(stage.view(1)))
    assert dense_damage(PIPELINES[name], honest, sent) == pytest.approx(done, rel=1e-3)
    assert torch.allclose(sent, written_out(stage, honest, noise, mean, std), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attack", ["opt_ipm", "opt_alie"])
@pytest.mark.parametrize("name", ["default", "krum", "trimmed_mean", "nnm_median"])
def test_nothing_is_aggregated_to_find_the_strength(attack, name, monkeypatch):
    """One pass over the honest gradients; twenty trials on a few numbers; no dense aggregate at all."""
    passes, trials, widest = [], [], []
    real_moments, real_damage = probing.moments, probing.Probe.damage
    monkeypatch.setattr(probing, "moments", lambda *given: passes.append(1) or real_moments(*given))
    monkeypatch.setattr(probing.Probe, "damage", lambda self, *at: trials.append(1) or real_damage(self, *at))
    monkeypatch.setattr(probing, "_SAMPLED", 100)
    monkeypatch.setattr(Pipeline, "__call__", lambda *given: pytest.fail("a dense aggregate"))
    reduce = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: widest.append(b.shape[-1]) or reduce(a, b))
    build_attack(attack)(Stage(pipeline=PIPELINES[name]).view(1))
    assert (len(passes), len(trials)) == (1, 20)
    assert all(width <= 100 or width == 16 for width in widest)


def test_a_sample_of_coordinates_tells_a_coordinatewise_rules_damage(monkeypatch):
    honest, noise = Stage().honest(1), [Stage._drawn(i) for i in range(3)]
    whole = probe(honest, noise, PIPELINES["median"], torch.Generator()).damage(-1.0, 0.0)
    monkeypatch.setattr(probing, "_SAMPLED", 400)
    sampled = probe(honest, noise, PIPELINES["median"], torch.Generator().manual_seed(0)).damage(-1.0, 0.0)
    assert D > 1000
    assert sampled == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize("shape", [(1, 7), (2, 40), (9, 70_000), (5, 32_768)])
def test_moments_are_those_of_their_definitions(shape):
    rows_ = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 100.0
    further = torch.randn(shape[1], generator=torch.Generator().manual_seed(2))
    of = moments(rows_, [further])
    wide = rows_.double()
    std = wide.std(0, correction=min(1, len(rows_) - 1))
    vectors_ = torch.cat([wide, (wide.mean(0) + std)[None], (wide.mean(0) + further)[None]])
    assert torch.allclose(of.mean.double(), wide.mean(0), rtol=1e-6)
    assert torch.allclose(of.std.double(), std, rtol=1e-3, atol=1e-5)
    apart = torch.cdist(vectors_, vectors_, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    np.testing.assert_allclose(of.span.distances(), apart, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(of.span.norms(), vectors_.norm(dim=1).numpy(), rtol=1e-5)
