"""Ratings from places: only those who played move, and nothing that is no number gets in."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.rating import Rating, newcomer, places, play
from fedgpt2.types import Hotkey
from tests.ranking.worlds import rule

RULE = rule()
NAMES = [Hotkey(f"m{i}") for i in range(6)]
RATINGS = st.lists(
    st.builds(Rating, st.floats(0, 50), st.floats(0.5, 9)), min_size=len(NAMES), max_size=len(NAMES)
).map(lambda made: dict(zip(NAMES, made, strict=True)))
SCORES = st.dictionaries(st.sampled_from(NAMES), st.floats(-5, 5), min_size=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused_not_rewarded(value: float) -> None:
    ratings = dict.fromkeys(NAMES, newcomer(RULE))
    with pytest.raises(ValueError, match="finite"):
        play(ratings, {NAMES[0]: value, NAMES[1]: 1.0}, [], RULE)


@given(RATINGS, SCORES)
def test_only_places_count(ratings: dict[Hotkey, Rating], scores: dict[Hotkey, float]) -> None:
    after = play(ratings, scores, [], RULE)
    assert set(after) == set(scores)
    bent = {hotkey: 2.0 * score - 3.0 for hotkey, score in scores.items()}
    if places(bent, []) == places(scores, []):
        assert play(ratings, bent, [], RULE) == after
    turned = dict(reversed(scores.items()))
    assert play(dict(reversed(ratings.items())), turned, [], RULE) == after
    assert all(math.isfinite(r.mu) and r.sigma > 0 for r in after.values())


def test_winners_rise_losers_fall_and_all_become_surer() -> None:
    ratings = dict.fromkeys(NAMES[:4], newcomer(RULE))
    after = play(ratings, {NAMES[0]: 3.0, NAMES[1]: 1.0, NAMES[2]: 1.0}, [NAMES[3]], RULE)
    first, second, third, last = (after[name] for name in NAMES[:4])
    assert first.mu > second.mu == third.mu > last.mu
    assert first.mu > RULE.mu > last.mu
    assert all(rating.sigma < RULE.sigma for rating in after.values())


def test_a_round_makes_surer_by_all_that_it_tells() -> None:
    """Weng and Lin's update of the variance with gamma 1, worked out by hand."""
    for n in (2, 6, 24):
        names = [Hotkey(f"m{i:02d}") for i in range(n)]
        after = play(dict.fromkeys(names, newcomer(RULE)), {name: -float(i) for i, name in enumerate(names)}, [], RULE)
        before = RULE.sigma**2 + RULE.tau**2
        c2 = n * (before + RULE.beta**2)
        told = sum(1 / (n - q) * (1 - 1 / (n - q)) for q in range(n))  # the last one is compared at every place
        assert after[names[-1]].sigma ** 2 == pytest.approx(before * (1 - before / c2 * told))
        assert after[names[0]].sigma ** 2 == pytest.approx(before * (1 - before / c2 * (1 / n) * (1 - 1 / n)))


def test_places_skip_what_was_shared() -> None:
    a, b, c, d, e, f = NAMES
    assert places({a: 1.0, b: 2.0, c: 1.0, d: 0.0}, [e, f]) == {b: 1, a: 2, c: 2, d: 4, e: 5, f: 5}


def test_one_alone_and_losers_among_themselves_play_nothing() -> None:
    ratings = dict.fromkeys(NAMES, newcomer(RULE))
    assert play(ratings, {NAMES[0]: 1.0}, [], RULE) == {}
    assert play(ratings, {}, NAMES[:3], RULE) == {}
    assert play(ratings, {}, [], RULE) == {}


def test_luck_drift_and_caution_are_settings() -> None:
    ratings = dict.fromkeys(NAMES[:2], newcomer(RULE))
    scores = {NAMES[0]: 1.0, NAMES[1]: 0.0}
    gains = [play(ratings, scores, [], rule(beta=beta))[NAMES[0]].mu for beta in (1.0, 4.0, 16.0)]
    assert gains == sorted(gains, reverse=True)
    sigmas = [play(ratings, scores, [], rule(tau=tau))[NAMES[0]].sigma for tau in (0.0, 1.0, 4.0)]
    assert sigmas == sorted(sigmas)
    assert newcomer(rule(mu=10.0, sigma=2.0)).ordinal(3.0) == 4.0
