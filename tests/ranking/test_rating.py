"""Ratings from places: only the miners compared change, and scores must be finite."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.rating import BETA, INITIAL, MU, SIGMA, Rating, places, update_ratings
from fedgpt2.types import Hotkey

TAU = 0.3
NAMES = [Hotkey(f"m{i}") for i in range(6)]
RATINGS = st.lists(
    st.builds(Rating, st.floats(0, 50), st.floats(0.5, 9)), min_size=len(NAMES), max_size=len(NAMES)
).map(lambda made: dict(zip(NAMES, made, strict=True)))
SCORES = st.dictionaries(st.sampled_from(NAMES), st.floats(-5, 5), min_size=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(value: float) -> None:
    ratings = dict.fromkeys(NAMES, INITIAL)
    with pytest.raises(ValueError, match="finite"):
        update_ratings(ratings, {NAMES[0]: value, NAMES[1]: 1.0}, [], TAU)


@given(RATINGS, SCORES)
def test_only_places_count(ratings: dict[Hotkey, Rating], scores: dict[Hotkey, float]) -> None:
    after = update_ratings(ratings, scores, [], TAU)
    assert set(after) == set(scores)
    bent = {hotkey: 2.0 * score - 3.0 for hotkey, score in scores.items()}
    if places(bent, []) == places(scores, []):
        assert update_ratings(ratings, bent, [], TAU) == after
    turned = dict(reversed(scores.items()))
    assert update_ratings(dict(reversed(ratings.items())), turned, [], TAU) == after
    assert all(math.isfinite(r.mu) and r.sigma > 0 for r in after.values())


def test_first_places_rise_last_places_fall_and_uncertainty_shrinks() -> None:
    ratings = dict.fromkeys(NAMES[:4], INITIAL)
    after = update_ratings(ratings, {NAMES[0]: 3.0, NAMES[1]: 1.0, NAMES[2]: 1.0}, [NAMES[3]], TAU)
    first, second, third, last = (after[name] for name in NAMES[:4])
    assert first.mu > second.mu == third.mu > last.mu
    assert first.mu > MU > last.mu
    assert all(rating.sigma < SIGMA for rating in after.values())


def test_the_variance_shrinks_by_the_whole_information_of_a_round() -> None:
    """Weng and Lin's update of the variance with gamma 1, computed by hand."""
    for n in (2, 6, 24):
        names = [Hotkey(f"m{i:02d}") for i in range(n)]
        after = update_ratings(
            dict.fromkeys(names, INITIAL), {name: -float(i) for i, name in enumerate(names)}, [], TAU
        )
        before = SIGMA**2 + TAU**2
        c2 = n * (before + BETA**2)
        told = sum(1 / (n - q) * (1 - 1 / (n - q)) for q in range(n))  # the last one is compared at every place
        assert after[names[-1]].sigma ** 2 == pytest.approx(before * (1 - before / c2 * told))
        assert after[names[0]].sigma ** 2 == pytest.approx(before * (1 - before / c2 * (1 / n) * (1 - 1 / n)))


def test_places_skip_what_was_shared() -> None:
    a, b, c, d, e, f = NAMES
    assert places({a: 1.0, b: 2.0, c: 1.0, d: 0.0}, [e, f]) == {b: 1, a: 2, c: 2, d: 4, e: 5, f: 5}


def test_one_miner_alone_and_last_places_alone_are_not_compared() -> None:
    ratings = dict.fromkeys(NAMES, INITIAL)
    assert update_ratings(ratings, {NAMES[0]: 1.0}, [], TAU) == {}
    assert update_ratings(ratings, {}, NAMES[:3], TAU) == {}
    assert update_ratings(ratings, {}, [], TAU) == {}


def test_drift_raises_the_uncertainty() -> None:
    ratings = dict.fromkeys(NAMES[:2], INITIAL)
    scores = {NAMES[0]: 1.0, NAMES[1]: 0.0}
    sigmas = [update_ratings(ratings, scores, [], tau)[NAMES[0]].sigma for tau in (0.0, 1.0, 4.0)]
    assert sigmas == sorted(sigmas)
    assert Rating(10.0, 2.0).ordinal == 4.0
    assert INITIAL.ordinal == 0.0
