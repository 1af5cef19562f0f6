"""What a round says of each miner: clusters, replays, faults, and rounds that were bad as a whole."""

import msgspec
import numpy as np
import pytest
from fedgpt2.ranking.evidence import Evidence, Trial
from fedgpt2.ranking.marks import RoundOutcome, keepers, marks, waived

from tests.ranking.worlds import AGGREGATE, MOMENT, evidence, refused, rule, unheard

RULE = rule()
DRAW = np.random.default_rng(3)
A, B, C, G, LAST = DRAW.normal(size=(5, 30))


def verdicts(made: Evidence) -> dict[str, RoundOutcome]:
    return {hotkey: mark.verdict for hotkey, mark in marks(made, RULE).items()}


def test_of_a_cluster_the_earliest_commitment_keeps_the_credit() -> None:
    made = evidence(
        1,
        {"a": A, "b": A * 1.001, "c": C, "d": A},
        G,
        clusters={"a": 0, "b": 0, "d": 0, "c": 1},
        committed={"a": 3.0, "b": 1.5, "c": 9.0, "d": 4.0},
    )
    assert keepers(made) == {"a": "b", "b": "b", "c": "c", "d": "b"}
    found = marks(made, RULE)
    assert [found[name].verdict for name in "abcd"] == [
        RoundOutcome.COPY,
        RoundOutcome.OWN,
        RoundOutcome.OWN,
        RoundOutcome.COPY,
    ]
    assert found["a"].keeper == "b"
    assert [found[name].score is None for name in "abcd"] == [True, False, False, True]


def test_a_commitment_without_a_time_is_the_last_and_equal_times_go_by_hotkey() -> None:
    made = evidence(1, {"b": A, "a": A, "c": B}, G, clusters={"a": 0, "b": 0, "c": 1}, committed={"a": 1.0, "b": 1.0})
    assert keepers(made)["b"] == "a"
    late = msgspec.structs.replace(
        made, miners=tuple(msgspec.structs.replace(m, committed=None) if m.hotkey == "a" else m for m in made.miners)
    )
    assert keepers(late)["a"] == "b"
    nobody = msgspec.structs.replace(
        made, miners=tuple(msgspec.structs.replace(m, committed=None) for m in made.miners)
    )
    assert keepers(nobody)["b"] == "a"


def test_replays_of_what_is_free_and_nothing_at_all_lose() -> None:
    made = evidence(
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
    assert marks(made, RULE)["replay"].loses
    assert marks(made, rule(own=0.0))["replay"].verdict is RoundOutcome.OWN


def test_only_miners_faults_are_held_against_them() -> None:
    made = evidence(1, {"a": A, "b": B}, G, others=[refused("liar"), unheard("cut")])
    assert verdicts(made) == {"a": "own", "b": "own", "cut": "unheard", "liar": "fault"}
    assert [hotkey for hotkey, mark in marks(made, RULE).items() if mark.loses] == ["liar"]


@pytest.mark.parametrize(("admitted", "failed", "bad"), [(1, 0, False), (2, 2, False), (2, 3, True), (0, 1, True)])
def test_a_round_in_which_most_fail_is_bad_as_a_whole(admitted: int, failed: int, bad: bool) -> None:
    xs = {f"m{i}": A for i in range(admitted)}
    others = [refused("x0")] * (failed > 0) + [unheard(f"x{i}") for i in range(1, failed)]
    made = evidence(1, xs, G, others=others)
    assert waived(made, RULE) is bad
    if failed:
        assert marks(made, RULE)["x0"].verdict is (RoundOutcome.EXCUSED if bad else RoundOutcome.FAULT)


def test_a_round_that_was_not_measured_compares_nobody() -> None:
    made = msgspec.structs.replace(evidence(1, {"a": A, "b": B}, G), products=None)
    assert {mark.score for mark in marks(made, RULE).values()} == {None}
    assert set(verdicts(made).values()) == {RoundOutcome.OWN}
    nothing = msgspec.structs.replace(evidence(1, {"a": A, "b": 0.0 * B}, G), products=None)
    assert verdicts(nothing)["b"] is RoundOutcome.REPLAY


def test_one_without_inner_products_is_not_compared() -> None:
    made = evidence(1, {"a": A, "b": B}, G)
    only = evidence(1, {"a": A}, G).products
    found = marks(msgspec.structs.replace(made, products=only), RULE)
    assert found["b"].score is None
    assert found["a"].score is not None


def test_the_rule_says_what_is_compared() -> None:
    made = evidence(1, {"a": A, "b": B}, G, [(AGGREGATE, LAST)])
    trials = (Trial(hotkey="a", before=4.0, after=3.9), Trial(hotkey="b", before=4.0, after=4.2))
    made = msgspec.structs.replace(made, trials=trials)
    found = marks(made, rule(score="losses"))
    assert [found[name].score for name in "ab"] == [pytest.approx(0.025), pytest.approx(-0.05)]
    raw = marks(made, rule(score="raw"))["a"]
    assert raw.credit is not None
    assert raw.score == raw.credit.raw == pytest.approx(G @ A / np.linalg.norm(A))
    blended = marks(made, rule(score="projected", blend=0.25))["a"]
    assert blended.score == pytest.approx(0.75 * raw.credit.added + 0.25 * raw.credit.raw)
    whole = marks(made, rule(score="proven", blend=0.25))
    assert [whole[name].score for name in "ab"] == pytest.approx([max(0.0, G @ v / np.linalg.norm(v)) for v in (A, B)])
    assert marks(made, rule(score="leave_one_out"))["a"].score != raw.score
    lost = msgspec.structs.replace(made, products=evidence(1, {"a": A, "b": B}, G, gram=False).products)
    assert marks(lost, rule(score="leave_one_out"))["a"].score is None
    untried = msgspec.structs.replace(made, trials=(Trial(hotkey="a", before=0.0, after=0.0),))
    assert marks(untried, rule(score="losses"))["a"].score is None


def test_a_body_that_equals_anothers_is_a_copy_and_no_fault() -> None:
    made = evidence(1, {"a": A, "b": B}, G, others=[refused("c", "duplicate")])
    found = marks(made, RULE)["c"]
    assert (found.verdict, found.score, found.loses) == (RoundOutcome.COPY, None, False)
