"""The audit sample: uncertain miners are likelier, and the draw depends on the seed alone."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.audit_sample import draw_sample
from fedgpt2.ranking.data_authenticity import MEMORY, AuditHistory
from fedgpt2.ranking.rating import Rating
from fedgpt2.ranking.reliability import Average
from fedgpt2.ranking.table import Standing, Table
from fedgpt2.types import Hotkey

NAMES = [Hotkey(f"m{i}") for i in range(6)]


@given(st.permutations(NAMES), st.integers(0, 8), st.binary(min_size=1, max_size=8))
def test_a_sample_does_not_depend_on_the_order_of_the_admitted(names: list[Hotkey], n: int, seed: bytes) -> None:
    found = draw_sample(Table(), names, n, seed)
    assert found == draw_sample(Table(), NAMES, n, seed)
    assert len(set(found)) == len(found) == min(n, 6)


def test_uncertain_ratings_are_likelier() -> None:
    sure, doubtful, new = NAMES[:3]
    table = Table(standings={sure: Standing(Rating(25.0, 1.0)), doubtful: Standing(Rating(25.0, 4.0))})
    drawn = Counter(
        name for i in range(2000) for name in draw_sample(table, [sure, doubtful, new], 1, i.to_bytes(4, "big"))
    )
    assert drawn[sure] < 0.05 * 2000
    assert drawn[doubtful] / drawn[new] < 0.4
    assert len(drawn) == 3


def test_miners_with_fewer_audits_are_likelier() -> None:
    often, once, never = NAMES[:3]
    audits = {often: 40, once: 1, never: 0}
    table = Table(standings={name: Standing(Rating(25.0, 2.0), audits=_audits(n)) for name, n in audits.items()})
    drawn = Counter(name for i in range(2000) for name in draw_sample(table, [*audits], 1, i.to_bytes(4, "big")))
    assert drawn[never] > 1.5 * drawn[once] > 3.0 * drawn[often] > 0


def _audits(n: int) -> AuditHistory:
    mean = Average()
    for _ in range(n):
        mean = mean.add(1.0, MEMORY)
    return AuditHistory(mean, 1.0, n)
