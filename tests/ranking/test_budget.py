"""The tokens that ranking computes on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import UsageError
from fedgpt2.ranking.budget import FEWEST, MOST, Budget, budget, check_ranking, window_shape
from tests.ranking.worlds import rule

ASSIGNED = st.lists(st.integers(1, 65_536), max_size=40)


@given(ASSIGNED, st.integers(0, 8))
def test_by_default_ranking_computes_on_a_tenth_of_the_assigned_tokens_at_most(
    assigned: list[int], audits: int
) -> None:
    found = budget(rule(audits=audits), assigned)
    assert found.gradient + found.audits * found.audit <= min(MOST, sum(assigned) / 10)
    assert found.audits <= min(audits, len(assigned))
    assert (found.audits > 0) == (found.audit > 0)


@given(ASSIGNED, st.integers(1, 8192), st.integers(0, 8))
def test_a_number_of_tokens_replaces_the_tenth(assigned: list[int], tokens: int, audits: int) -> None:
    found = budget(rule(tokens=tokens, audits=audits), assigned)
    assert found.gradient + found.audits * found.audit == (tokens if len(assigned) >= FEWEST else 0)


def test_fewer_than_three_miners_and_rule_off_measure_nothing() -> None:
    assert budget(rule(), [65_536] * (FEWEST - 1)) == budget(rule(tokens=512), [1024]) == Budget()
    assert budget(rule(rule="off", tokens=512), [1024] * 8) == Budget()


def test_half_of_the_budget_is_for_audits() -> None:
    assert budget(rule(tokens=4096), [1024] * 16) == Budget(gradient=2048, audits=4, audit=512)
    assert budget(rule(tokens=4096, audits=0), [1024] * 16) == Budget(gradient=4096)
    assert budget(rule(tokens=4096), [1024] * 3) == Budget(gradient=2050, audits=3, audit=682)


@given(st.integers(1, 10_000), st.integers(1, 1024))
def test_windows_hold_no_more_than_the_budget(tokens: int, seq_len: int) -> None:
    count, length = window_shape(tokens, seq_len)
    assert 1 <= length <= seq_len
    assert tokens - count < count * length <= tokens


def test_an_unknown_rule_is_refused() -> None:
    check_ranking(rule(rule="off"))
    with pytest.raises(UsageError, match=r"--ranking\.rule best: no such rule; one of contribution, off"):
        check_ranking(rule(rule="best"))
