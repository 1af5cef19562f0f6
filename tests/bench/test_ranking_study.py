"""The ranking study's arithmetic: against openskill, against plain linear algebra, against the shipped rule."""

import numpy as np
import pytest
from openskill.models import PlackettLuce

from fedgpt2.config import Ranking
from fedgpt2.ranking.table import Table, advance
from scoring.attacks import ATTACKS
from scoring.plackett_luce import Rating, rate
from scoring.questions import graded, honest_names
from scoring.scores import BASES, Evidence, Score, scores
from scoring.shipped import Rounds, graded_texts, name_of
from scoring.tables import CHOSEN
from scoring.training import AUDITED, SCORES, SLOTS, graded_names

ROUNDS, D = 6, 400


def _names() -> list[str]:
    fixed = {*honest_names(), *graded_names(), "agg/0"}
    fixed |= {f"audit/{slot}/{windows}" for slot in range(SLOTS) for windows in AUDITED}
    rows = {row for basis in BASES.values() for row in basis}
    rows |= {row for attack in ATTACKS.values() for row in attack[0] | attack[1]}
    return sorted(fixed | rows | {f"score/{tokens}" for tokens in SCORES})


@pytest.fixture(scope="module")
def dense() -> dict[str, np.ndarray]:
    """Rows [r, d] by name, with a direction that all of them share."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((ROUNDS, D))
    return {name: rng.standard_normal((ROUNDS, D)) + 0.5 * common for name in _names()}


@pytest.fixture(scope="module")
def evidence(dense: dict[str, np.ndarray]) -> Evidence:
    rows = np.stack([*dense.values()], axis=1)
    return Evidence(
        name="made up",
        rows={name: i for i, name in enumerate(dense)},
        gram=rows @ rows.swapaxes(1, 2),
        present=np.tile(np.arange(6), (ROUNDS, 1)),
        change=np.ones((ROUNDS, 6)),
        loss=np.ones(ROUNDS),
    )


@pytest.mark.parametrize("damped", [True, False])
def test_ratings_are_those_of_openskill(damped: bool) -> None:
    rng = np.random.default_rng(0)
    played = rng.standard_normal((20, 8)) + 0.3 * np.arange(8)
    played[rng.random(played.shape) < 0.3] = np.nan
    settings = Rating(beta=7.0, tau=0.1, damped=damped)
    mu, sigma = rate(played[None], settings)
    gamma = {} if damped else {"gamma": lambda *_: 1.0}
    model = PlackettLuce(mu=settings.mu, sigma=settings.sigma, beta=settings.beta, tau=settings.tau, **gamma)
    players = [model.rating() for _ in range(8)]
    for row in played:
        here = np.flatnonzero(np.isfinite(row))
        for i, team in zip(here, model.rate([[players[i]] for i in here], scores=row[here].tolist()), strict=True):
            players[i] = team[0]
    np.testing.assert_allclose(mu[0, -1], [player.mu for player in players], rtol=1e-12)
    np.testing.assert_allclose(sigma[0, -1], [player.sigma for player in players], rtol=1e-12)


@pytest.mark.parametrize("kind", ["raw", "whole", "own"])
def test_scores_are_those_of_the_vectors(evidence: Evidence, dense: dict[str, np.ndarray], kind: str) -> None:
    x = np.array([evidence.vector("full/0"), evidence.vector("full/1")])
    made = scores(evidence, x, 2, Score(kind, "M+A2"))
    for r in range(ROUNDS):
        g = dense["score/2048"][r]
        basis = np.stack([dense[name][r] for name in BASES["M+A2"]], axis=1)
        for i in range(2):
            vector = dense[f"full/{i}"][r]
            rest = vector - basis @ np.linalg.lstsq(basis, vector, rcond=None)[0]
            effect, length = {"raw": (vector, vector), "whole": (rest, vector), "own": (rest, rest)}[kind]
            expected = g @ effect / np.linalg.norm(length) / np.linalg.norm(g)
            assert made[r, i] == pytest.approx(expected, rel=1e-9)


def test_the_chosen_score_is_that_of_the_shipped_rule(evidence: Evidence) -> None:
    x, rule = graded(evidence), Ranking(tokens=2048, audits=0)
    rounds, table = Rounds.of(evidence, x, graded_texts(), SLOTS, rule), Table(rule=rule)
    expected = scores(evidence, x, SLOTS, CHOSEN)
    for r in range(ROUNDS):
        table, made = advance(table, rounds.record(r, range(SLOTS), table, b""))
        found = [(made[name_of(i)].score or 0.0) / rounds.unit[r] for i in range(SLOTS)]
        np.testing.assert_allclose(found, expected[r], rtol=1e-6, atol=1e-9)
