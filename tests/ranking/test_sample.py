"""Whose step is tried out: the doubtful more often, nobody knows beforehand."""

from collections import Counter

from fedgpt2.ranking.audit import MEMORY, Told
from fedgpt2.ranking.sample import choose
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.rating import Rating
from fedgpt2.ranking.reliability import Average
from fedgpt2.ranking.table import Standing, Table
from fedgpt2.types import Hotkey

NAMES = [Hotkey(f"m{i}") for i in range(6)]


@given(st.permutations(NAMES), st.integers(0, 8), st.binary(min_size=1, max_size=8))
def test_a_sample_is_of_the_admitted_and_does_not_hang_on_their_order(names: list[Hotkey], n: int, seed: bytes) -> None:
    found = choose(Table(), names, n, seed)
    assert found == choose(Table(), NAMES, n, seed)
    assert len(set(found)) == len(found) == min(n, 6)


def test_the_less_sure_a_rating_the_likelier() -> None:
    sure, doubtful, new = NAMES[:3]
    table = Table(standings={sure: Standing(Rating(25.0, 1.0)), doubtful: Standing(Rating(25.0, 4.0))})
    drawn = Counter(name for i in range(2000) for name in choose(table, [sure, doubtful, new], 1, i.to_bytes(4, "big")))
    assert drawn[sure] < 0.05 * 2000
    assert drawn[doubtful] / drawn[new] < 0.4
    assert len(drawn) == 3


def test_the_fewer_audits_have_told_the_likelier() -> None:
    often, once, never = NAMES[:3]
    audits = {often: 40, once: 1, never: 0}
    table = Table(standings={name: Standing(Rating(25.0, 2.0), grounded=_audits(n)) for name, n in audits.items()})
    drawn = Counter(name for i in range(2000) for name in choose(table, [*audits], 1, i.to_bytes(4, "big")))
    assert drawn[never] > 1.5 * drawn[once] > 3.0 * drawn[often] > 0


def _audits(n: int) -> Told:
    mean = Average()
    for _ in range(n):
        mean = mean.add(1.0, MEMORY)
    return Told(mean, 1.0, n)
