"""The study of scores: its arithmetic against plain linear algebra and openskill."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from openskill.models import PlackettLuce

import ranking_study
from credit.collect import HONEST, SLOTS, collect, graded_names, inner_products
from credit.judge import PADS, _mixed, equals, honest_names, padded, truth
from credit.liars import LIES, contributions, effort
from credit.rating import Rating, kendall, rate
from credit.scores import BASES, Evidence, Score, compared, marks, measured
from credit.shipped import Rounds, graded_texts, name_of, paid, ranked, taus
from credit.study import BEGIN, CHOSEN, END, GANG, RATINGS, SCORES, SHARES, _ratings, _shares, _shipped
from fedgpt2.config import Ranking
from fedgpt2.errors import UsageError
from fedgpt2.ranking.credit import credits
from fedgpt2.ranking.table import Table, advance

ROUNDS, D = 6, 400
ROOT = Path(__file__).parents[2]


def _names() -> list[str]:
    fixed = {*honest_names(), "agg/0", "past", "score/512", "score/1024", "score/2048", "score/4096", "score/8192"}
    rows = {row for basis in BASES.values() for row in basis} | {
        row for lie in LIES.values() for row in lie[0] | lie[1]
    }
    return sorted(fixed | rows | set(graded_names()) | {f"audit/{slot}" for slot in range(SLOTS)})


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
def test_many_ratings_at_once_are_openskills(damped: bool) -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((20, 8)) + 0.3 * np.arange(8)
    scores[rng.random(scores.shape) < 0.3] = np.nan
    settings = Rating(beta=7.0, tau=0.1, damped=damped)
    mu, sigma = rate(np.stack([scores, scores[:, ::-1]]), settings)
    gamma = {} if damped else {"gamma": lambda *_: 1.0}
    model = PlackettLuce(mu=settings.mu, sigma=settings.sigma, beta=settings.beta, tau=settings.tau, **gamma)
    players = [model.rating() for _ in range(8)]
    for row in scores:
        here = np.flatnonzero(np.isfinite(row))
        rated = model.rate([[players[i]] for i in here], scores=row[here].tolist())
        for i, team in zip(here, rated, strict=True):
            players[i] = team[0]
    np.testing.assert_allclose(mu[0, -1], [player.mu for player in players], rtol=1e-12)
    np.testing.assert_allclose(sigma[0, -1], [player.sigma for player in players], rtol=1e-12)
    np.testing.assert_allclose(mu[1, -1], mu[0, -1, ::-1], rtol=1e-12)


def test_equals_are_unpaid_until_ratings_are_sure(evidence: Evidence) -> None:
    sure, unsure = Rating(sigma=1e-3, damped=False), Rating(sigma=25.0, damped=False)
    assert [equals([evidence, evidence], Score(), settings)[0] for settings in (sure, unsure)] == [0.0, HONEST]
    assert equals([evidence], Score(), sure)[1] < 1e-3
    group = {"ratings": {words: _rated(i) for i, words in enumerate(RATINGS)}}
    lines = _ratings({"one": group})
    assert len(lines) == 2 + len(RATINGS)
    assert lines[2] == "| openskill's | 0.50 (0.25) · 0.50 (0.25) · 0.0 |"
    assert lines[-1].endswith(f" · {len(RATINGS) - 1}.0 |")


def test_padding_is_measured_against_the_same_work_without(evidence: Evidence, dense: dict[str, np.ndarray]) -> None:
    sure = Rating(sigma=1e-6, damped=False)
    found = padded([evidence], CHOSEN, sure)
    assert set(found) == {*PADS}
    np.testing.assert_allclose([*found.values()], [(1.0, 0.0)] * len(PADS), atol=1e-3)  # ratings that do not move
    x = np.broadcast_to(evidence.vector("full/3"), (ROUNDS, 1, len(dense)))
    mixed = _mixed(evidence, x, {"agg/2": -0.25, "agg/1": 0.5})[2, 0] @ np.stack([rows[2] for rows in dense.values()])
    own, two, one = (dense[name][2] / np.linalg.norm(dense[name][2]) for name in ("full/3", "agg/2", "agg/1"))
    np.testing.assert_allclose(mixed, own - 0.25 * two + 0.5 * one, atol=1e-9)
    shares = {"adds": {"mean": 0.5, "low": None}, "six_adds": {"mean": 0.5, "low": None}}
    shares |= {"equals_unpaid": 0.25, "equals_spread": 0.5, "padded": {"a": [0.9, 0.1], "b": [1.1, 0.05]}}
    lines = _shares({"one": {"shares": dict.fromkeys(SHARES, shares)}})
    assert lines[-1] == "| all of it, full at the median | 0.50 · 0.50 · 0.2 · 0.50 · 1.10 ± 0.05 (b) |"


def test_who_pads_does_so_in_place_of_its_work(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("credit.judge.PADS", {"nothing": {}, "much of a replay": {"agg/1": 50.0}})
    found = padded([evidence, evidence], CHOSEN, Rating(tau=0.3, damped=False))
    assert found["nothing"] == (pytest.approx(1.0), pytest.approx(0.0))
    assert found["much of a replay"][0] < 0.1


def test_the_chosen_score_is_the_rules(evidence: Evidence) -> None:
    x = np.array([evidence.vector(name) for name in graded_names()])
    rounds, rule = Rounds.of(evidence, x, graded_texts()), Ranking()
    table = Table(rule=rule)
    expected = marks(evidence, x, SLOTS, CHOSEN)
    for r in range(ROUNDS):
        given = msgspec.structs.replace(rounds.evidence(r, range(SLOTS), table, rule, b""), audits=())
        table, made = advance(table, given, rule)
        scores = [(made[name_of(i)].mark.score or 0.0) / rounds.unit[r] for i in range(SLOTS)]
        np.testing.assert_allclose(scores, expected[r], rtol=1e-6, atol=1e-9)


def _rated(unpaid: int) -> dict[str, object]:
    tau = {"mean": 0.5, "low": 0.25}
    return {"adds": tau, "six_adds": tau, "equals_unpaid": float(unpaid)}


def test_scores_are_those_of_the_vectors(evidence: Evidence, dense: dict[str, np.ndarray]) -> None:
    x = np.array([evidence.vector("full/0"), evidence.vector("full/1")])
    for kind in ("raw", "whole", "own"):
        made = marks(evidence, x, 2, Score(kind, "M+A2"))
        for r in range(ROUNDS):
            g = dense["score/2048"][r]
            basis = np.stack([dense[name][r] for name in BASES["M+A2"]], axis=1)
            for i in range(2):
                vector = dense[f"full/{i}"][r]
                rest = vector - basis @ np.linalg.lstsq(basis, vector, rcond=None)[0]
                taken = {"raw": (vector, vector), "whole": (rest, vector), "own": (rest, rest)}[kind]
                expected = g @ taken[0] / np.linalg.norm(taken[1]) / np.linalg.norm(g)
                assert made[r, i] == pytest.approx(expected, rel=1e-9)


def test_padding_with_what_is_free_leaves_own_credit_alone(evidence: Evidence) -> None:
    bare, padded = evidence.vector("full/0"), evidence.vector({"full/0": 1.0, "agg/1": 0.7, "moment": -0.4})
    made = marks(evidence, np.array([bare, padded]), 2, Score("own", "M+A2"))
    np.testing.assert_allclose(made[:, 0], made[:, 1], rtol=1e-9)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_every_score_is_finite_for_every_lie(evidence: Evidence, score: Score) -> None:
    honest = np.broadcast_to(np.array([evidence.vector(name) for name in graded_names()]), (ROUNDS, 16, len(_names())))
    made = marks(evidence, np.concatenate([honest, contributions(evidence)], axis=1), 16, score)
    assert made.shape == (ROUNDS, 16 + len(LIES))
    assert np.isfinite(made).all()


def test_a_replay_has_proven_nothing(evidence: Evidence) -> None:
    x = np.array([evidence.vector(name) for name in ("full/0", "full/1", "agg/1", "agg/2")])
    made = marks(evidence, x, 2, CHOSEN)
    assert (made[:, :2] > 0).all()
    np.testing.assert_allclose(made[:, 2:], 0.0, atol=1e-9)


def test_rounds_of_absence_leave_what_was_proven(evidence: Evidence) -> None:
    x = np.array([evidence.vector(name) for name in graded_names()])
    plain, own = measured(evidence, x, 16, CHOSEN)
    gone = np.zeros_like(plain, dtype=bool)
    gone[2:4, 5] = True
    made = compared(np.where(gone, np.nan, plain), np.where(gone, np.nan, own), 16, CHOSEN)
    assert (np.isnan(made) == gone).all()


def test_the_shipped_ranking_is_given_what_was_kept(evidence: Evidence, dense: dict[str, np.ndarray]) -> None:
    x = np.array([evidence.vector(name) for name in graded_names()])
    added = marks(evidence, x, SLOTS, Score("whole", "M+A2"))
    rounds, rule = Rounds.of(evidence, x, graded_texts()), Ranking()
    texts = dict(zip(graded_names(), graded_texts(), strict=True))
    assert sorted(texts.values()) == list(range(SLOTS))
    assert (texts["part/3"], texts["noise/50"], texts["late/8"], texts["half/2"]) == (3, 14, 11, 15)
    for r in range(ROUNDS):
        given = rounds.evidence(r, range(SLOTS), Table(rule=rule), rule, b"seed")
        found = credits(given, rule)
        unit = np.linalg.norm(dense["score/2048"][r])
        np.testing.assert_allclose([found[name_of(i)].added / unit for i in range(SLOTS)], added[r], rtol=1e-6)
        for audit in given.audits:
            i = next(i for i in range(SLOTS) if name_of(i) == audit.hotkey)
            vector = dense[graded_names()[i]][r]
            told = dense[f"audit/{graded_texts()[i]}"][r] @ vector / np.linalg.norm(vector)
            assert (audit.before - audit.after) / audit.length == pytest.approx(told, rel=1e-9)
        assert len(given.audits) == rule.sample


def test_under_sgd_a_validator_knows_of_no_moment(evidence: Evidence) -> None:
    x = np.array([evidence.vector(name) for name in graded_names()])
    renamed = [replace(evidence, name=name) for name in ("nano-sgd-1", "nano-adamw-1")]
    kinds = [[free.kind for free in Rounds.of(each, x, graded_texts()).kinds] for each in renamed]
    assert kinds == [["aggregate", "aggregate"], ["moment", "aggregate", "aggregate"]]


def test_the_pages_first_table_is_of_the_shipped_ranking(evidence: Evidence) -> None:
    kept = [evidence, replace(evidence, name="made up too")]
    worth, adds = truth(kept, Score(tokens=8192)), truth(kept, Score("whole", "M+A2", tokens=8192))
    taus_by_name, lies = taus(kept, worth, adds), paid(kept)
    assert {name.split()[0] for name in taus_by_name} == {"all", "six"}
    assert all(len(values) == 2 and (np.abs(values) <= 1).all() for values in taus_by_name.values())
    assert set(LIES) < set(lies)
    assert lies["agg/1"][:2] == (0.0, 0.0)
    shipped = {"tau": {name: {"mean": 0.5, "low": None} for name in taus_by_name}, "lies": lies}
    baselines = {name: {"mean": 0.25, "low": 0.125} for name in ("rated", "rated_adds", "mean", "mean_adds")}
    lines = _shipped({"one": {"seeds": ["a"], "shipped": shipped, "baselines": baselines}})
    assert lines[0] == "| | one (1 seeds) |"
    assert "| **the rule**, τ with what a miner adds, 6 of 16: rating · table | 0.50 · 0.50 |" in lines
    assert "| losses of 6 sampled, running mean, τ with the whole effect | 0.25 (0.12) |" in lines
    assert sum(line.startswith("| works ") for line in lines) == 6


def test_a_replay_is_last_in_the_shipped_ranking(evidence: Evidence) -> None:
    x = np.array([evidence.vector(name) for name in [*graded_names()[:4], "agg/1"]])
    there = np.ones((ROUNDS, 5), dtype=bool)
    there[2, :3] = False
    found = ranked(Rounds.of(evidence, x, range(5)), there, Ranking(), b"seed")
    assert found.place.argmax() == found.mu.argmin() == 4
    assert sorted(found.place) == [1, 2, 3, 4, 5]
    assert found.weight.sum() == pytest.approx(1.0)
    assert found.weight[4] == 0.0


def test_tau_counts_pairs() -> None:
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(kendall(np.array([truth, -truth, [1, 2, 4, 3]]), truth), [1.0, -1.0, 2 / 3])


def test_inner_products_of_rows(dense: dict[str, np.ndarray]) -> None:
    import torch

    rows = {name: torch.from_numpy(values[0]).float() for name, values in [*dense.items()][:5]}
    names, gram = inner_products(rows)
    stacked = torch.stack([*rows.values()]).double()
    assert names == [*rows]
    np.testing.assert_allclose(gram, (stacked @ stacked.T).numpy(), rtol=1e-4, atol=1e-3)


def test_rows_of_another_version_are_refused(tmp_path: Path) -> None:
    recipe = ranking_study.RECIPES[0]
    np.savez_compressed(tmp_path / f"{recipe.name}.npz", names=np.array(["full/0"]))
    with pytest.raises(UsageError, match="another version of this study"):
        collect(recipe, tmp_path)
    np.savez_compressed(tmp_path / f"{recipe.name}.npz", names=np.array(graded_names()))
    assert collect(recipe, tmp_path) == tmp_path / f"{recipe.name}.npz"


def test_a_lie_says_what_it_costs() -> None:
    assert {effort(name) for name in LIES} == {"0", "1/8", "stale"}
    assert effort("agg/1") == "0"
    assert effort("small + 1 agg/1") == "1/8"
    assert set(GANG) <= set(LIES)


def test_tables_go_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    ranking_study.weave(page, ["| new |"])
    ranking_study.weave(page, ["| new |"])
    assert page.read_text() == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="study"):
        ranking_study.weave(page, [])


def test_recipes_have_names_of_their_own() -> None:
    names = [recipe.name for recipe in ranking_study.RECIPES]
    assert len(set(names)) == len(names)
    assert set(ranking_study.TITLES) <= {recipe.group for recipe in ranking_study.RECIPES}
    assert replace(ranking_study.RECIPES[0], lr=0.5).group not in {recipe.group for recipe in ranking_study.RECIPES}


def test_the_record_speaks_of_the_chosen_score() -> None:
    newest = sorted((ROOT / "benchmarks" / "results").glob("ranking-study-*.json"))[-1]
    groups = json.loads(newest.read_text())["groups"]
    for group in ranking_study.TITLES:
        assert groups[group]["scores"][CHOSEN.name]["worst"]["0"][0][3] == 0.0  # no replay above any honest miner
