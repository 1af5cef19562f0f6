"""Reliability, share, presence, and pay."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome
from fedgpt2.ranking.payout import U16_MAX, pay, pay_shares, score, to_u16
from fedgpt2.ranking.rating import Rating
from fedgpt2.ranking.reliability import Average, Conduct, update_conduct
from tests.ranking.worlds import rule

RULE = rule()
PAYS = st.lists(st.floats(0, 1e12), max_size=40)


def after(*verdicts: RoundOutcome | None, bad: bool = False) -> Conduct:
    conduct = Conduct()
    for verdict in verdicts:
        conduct = update_conduct(
            conduct, None if verdict is None else MinerOutcome(verdict), RULE.memory, common_failure=bad
        )
    return conduct


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.integers(1, 30))
def test_an_average_lies_among_its_values_and_forgets(values: list[float], rounds: int) -> None:
    average = Average()
    assert average.value(7.0) == 7.0
    for value in values:
        average = average.add(value, rounds)
    assert min(values) - 1e-9 <= average.value(7.0) <= max(values) + 1e-9
    for _ in range(40 * rounds):
        average = average.add(3.0, rounds)
    assert average.value(7.0) == pytest.approx(3.0, abs=1e-6)
    assert Average().add(values[0], rounds).value(0.0) == pytest.approx(values[0])


def test_reliability_falls_by_own_faults_alone() -> None:
    own = RoundOutcome.OWN
    assert after(own, own, own).reliability.value(1.0) == 1.0
    assert after(own, RoundOutcome.UNHEARD, own).reliability == after(own, own).reliability
    assert after(own, RoundOutcome.EXCUSED, own, bad=True).reliability == after(own, own).reliability
    assert after(own, None, own).reliability == after(own, own).reliability
    assert after(own, RoundOutcome.FAULT).reliability.value(1.0) < 0.6
    assert after(RoundOutcome.FAULT, *[own] * 30).reliability.value(1.0) > 0.9
    assert after(RoundOutcome.FAULT).reliability.value(1.0) == 0.0
    assert after(own, RoundOutcome.COPY, RoundOutcome.REPLAY).reliability.value(1.0) == 1.0


def test_refusals_orders_and_clean_rounds_are_counted() -> None:
    conduct = after(
        RoundOutcome.OWN,
        RoundOutcome.FAULT,
        RoundOutcome.EXCUSED,
        RoundOutcome.UNHEARD,
        None,
        RoundOutcome.COPY,
        RoundOutcome.OWN,
    )
    assert (conduct.clean, conduct.refusals, conduct.orders) == (2, 2, 6)


@given(st.integers(2, 6), st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_shares_of_hotkeys_that_send_one_gradient_sum_to_one(k: int, first: list[int]) -> None:
    members = [Conduct()] * k
    for turn in first:
        said = [RoundOutcome.OWN if i == turn % k else RoundOutcome.COPY for i in range(k)]
        members = [
            update_conduct(c, MinerOutcome(v), RULE.memory, common_failure=False)
            for c, v in zip(members, said, strict=True)
        ]
    assert math.fsum(c.share.value(1.0) for c in members) == pytest.approx(1.0)


def test_a_miner_present_in_half_of_the_rounds_is_paid_half() -> None:
    rating = Rating(30.0, 2.0)
    often, seldom = after(*[RoundOutcome.OWN] * 60), after(*[RoundOutcome.OWN, None] * 60)
    both = [pay(score(rating, conduct, 1.0), conduct, RULE) for conduct in (often, seldom)]
    assert both[1] / both[0] == pytest.approx(0.5, abs=0.03)
    assert after(*[RoundOutcome.OWN] * 9, bad=True).presence.value(0.0) == 1.0
    assert after(*[None] * 9, bad=True).presence == Average()


def test_newcomers_are_rated_and_not_paid() -> None:
    rating = Rating(40.0, 1.0)
    young, grown = after(*[RoundOutcome.OWN] * (RULE.clean_rounds - 1)), after(*[RoundOutcome.OWN] * RULE.clean_rounds)
    assert score(rating, young, 1.0) == score(rating, grown, 1.0) > 0.0
    assert pay(score(rating, young, 1.0), young, RULE) == 0.0
    assert pay(score(rating, grown, 1.0), grown, RULE) > 0.0
    assert pay(5.0, after(*[RoundOutcome.COPY] * 50), RULE) == 0.0


def test_pay_is_convex_and_0_for_uncertain_ratings() -> None:
    conduct = after(*[RoundOutcome.OWN] * 10)
    assert score(Rating(20.0, 7.0), conduct, 1.0) == 0.0
    one, two = (pay(score, conduct, RULE) for score in (5.0, 10.0))
    assert two == pytest.approx(4.0 * one)
    assert pay(10.0, conduct, rule(power=1.0)) == pytest.approx(10.0)


@given(PAYS)
def test_weights_sum_to_one_and_keep_proportion(pays: list[float]) -> None:
    found = pay_shares(pays)
    assert len(found) == len(pays)
    if not any(pays):
        assert found == [0.0] * len(pays)
        return
    assert math.fsum(found) == pytest.approx(1.0)
    assert [found[i] <= found[i + 1] for i in range(len(pays) - 1) if pays[i] < pays[i + 1]].count(False) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_pay_that_is_negative_or_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        pay_shares([1.0, value])


@given(PAYS)
def test_u16_weights_equal_those_of_bittensor(pays: list[float]) -> None:
    from bittensor.intents.weights import normalize

    found = pay_shares(pays)
    uids, values = normalize(range(len(found)), found)
    assert dict(zip(uids, values, strict=True)) == {i: v for i, v in enumerate(to_u16(found)) if v}
    assert max(to_u16(found), default=0) in (0, U16_MAX)
