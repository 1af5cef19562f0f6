"""Outcomes of a round: clusters, replays, faults, and common failures."""

import msgspec
import numpy as np
import pytest

from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.outcomes import RoundOutcome, common_failure, keepers, round_outcomes
from tests.ranking.worlds import AGGREGATE, MOMENT, failed, refused, round_of, with_evidence

DRAW = np.random.default_rng(3)
A, B, C, G, LAST = DRAW.normal(size=(5, 30))


def verdicts(made: RoundRecord) -> dict[str, RoundOutcome]:
    return {hotkey: outcome.verdict for hotkey, outcome in round_outcomes(made).items()}


def test_in_a_cluster_the_earliest_commitment_keeps_the_credit() -> None:
    made = round_of(
        1,
        {"a": A, "b": A * 1.001, "c": C, "d": A},
        G,
        clusters={"a": 0, "b": 0, "d": 0, "c": 1},
        committed={"a": 3.0, "b": 1.5, "c": 9.0, "d": 4.0},
    )
    assert keepers(made) == {"a": "b", "b": "b", "c": "c", "d": "b"}
    found = round_outcomes(made)
    assert [found[name].verdict for name in "abcd"] == [
        RoundOutcome.COPY,
        RoundOutcome.OWN,
        RoundOutcome.OWN,
        RoundOutcome.COPY,
    ]
    assert found["a"].keeper == "b"
    assert [found[name].score is None for name in "abcd"] == [True, False, False, True]


def test_a_commitment_without_a_time_comes_last_and_equal_times_go_by_hotkey() -> None:
    made = round_of(1, {"b": A, "a": A, "c": B}, G, clusters={"a": 0, "b": 0, "c": 1}, committed={"a": 1.0, "b": 1.0})
    assert keepers(made)["b"] == "a"
    late = msgspec.structs.replace(
        made, miners=tuple(msgspec.structs.replace(m, committed=None) if m.hotkey == "a" else m for m in made.miners)
    )
    assert keepers(late)["a"] == "b"
    nobody = msgspec.structs.replace(
        made, miners=tuple(msgspec.structs.replace(m, committed=None) for m in made.miners)
    )
    assert keepers(nobody)["b"] == "a"


def test_replays_of_baseline_vectors_and_zero_come_last() -> None:
    made = round_of(
        1,
        {"honest": A, "replay": 3.0 * LAST, "moment": LAST - 2.0 * B, "nothing": 0.0 * A},
        G,
        [(AGGREGATE, LAST), (MOMENT, B)],
    )
    assert verdicts(made) == {
        "honest": RoundOutcome.OWN,
        "moment": RoundOutcome.REPLAY,
        "nothing": RoundOutcome.REPLAY,
        "replay": RoundOutcome.REPLAY,
    }
    assert round_outcomes(made)["replay"].last


def test_only_a_miners_own_fault_counts() -> None:
    made = round_of(1, {"a": A, "b": B}, G, others=[refused("mallory"), failed("cut")])
    assert verdicts(made) == {"a": "own", "b": "own", "cut": "unheard", "mallory": "fault"}
    assert [hotkey for hotkey, outcome in round_outcomes(made).items() if outcome.last] == ["mallory"]


@pytest.mark.parametrize(("admitted", "absent", "common"), [(1, 0, False), (2, 2, False), (2, 3, True), (0, 1, True)])
def test_where_most_miners_fail_no_miner_is_blamed(admitted: int, absent: int, common: bool) -> None:
    xs = {f"m{i}": A for i in range(admitted)}
    others = [refused("x0")] * (absent > 0) + [failed(f"x{i}") for i in range(1, absent)]
    made = round_of(1, xs, G, others=others)
    assert common_failure(made) is common
    if absent:
        assert round_outcomes(made)["x0"].verdict is (RoundOutcome.EXCUSED if common else RoundOutcome.FAULT)


def test_a_round_that_was_not_measured_compares_nobody() -> None:
    made = with_evidence(round_of(1, {"a": A, "b": B}, G), products=None)
    assert {outcome.score for outcome in round_outcomes(made).values()} == {None}
    assert set(verdicts(made).values()) == {RoundOutcome.OWN}
    nothing = with_evidence(round_of(1, {"a": A, "b": 0.0 * B}, G), products=None)
    assert verdicts(nothing)["b"] is RoundOutcome.REPLAY


def test_one_without_inner_products_is_not_compared() -> None:
    made = round_of(1, {"a": A, "b": B}, G)
    only = round_of(1, {"a": A}, G).evidence.products
    found = round_outcomes(with_evidence(made, products=only))
    assert found["b"].score is None
    assert found["a"].score is not None


def test_the_score_is_a_third_of_the_whole_effect_and_two_thirds_of_the_contribution() -> None:
    for x in (A, -A):
        found = round_outcomes(round_of(1, {"a": x, "b": B}, G, [(AGGREGATE, LAST)]))["a"]
        assert found.credit is not None
        assert found.credit.raw == pytest.approx(G @ x / np.linalg.norm(x))
        assert found.score == max(0.0, (found.credit.raw + 2.0 * found.credit.contribution) / 3.0)


def test_a_body_that_equals_anothers_is_a_copy_and_no_fault() -> None:
    made = round_of(1, {"a": A, "b": B}, G, others=[refused("c", "duplicate")])
    found = round_outcomes(made)["c"]
    assert (found.verdict, found.score, found.last) == (RoundOutcome.COPY, None, False)
