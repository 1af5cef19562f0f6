"""Real processes that lie, among honest ones: what is refused for which reason, and what the rest weighs."""

import pytest

HOSTILE = "hostile_miner:main"


@pytest.fixture(scope="module")
def five(shared, miners):
    """Three honest miners and a place for a fourth who is not; the default rule needs four to be robust."""
    return [*miners, shared.miner("H3")]


def answers(federation, liar):
    """The liar's share of every round."""
    return [next(m for m in row["miners"] if m["hotkey"] == liar.hotkey) for row in federation.rows()]


def honest(federation, liar):
    """What became of the others, round by round."""
    return [{m["status"] for m in row["miners"] if m["hotkey"] != liar.hotkey} for row in federation.rows()]


def test_each_lie_meets_what_stops_it(federation, five):
    lies = ("sign_flip", "scale", "scale_bound", "oversize", "wrong_dtypes", "wrong_names", "inf")
    liar = federation.miner("L1", "--attack", *lies, program=HOSTILE)
    federation.validator([*five, liar], rounds=len(lies)).ended()
    reasons = [None, "norm_bound", None, "too_large", "wrong_dtype", "wrong_names", "non_finite"]
    told = answers(federation, liar)
    assert [miner["reason"] for miner in told] == reasons
    assert [miner["status"] for miner in told] == ["refused" if reason else "admitted" for reason in reasons]
    assert {miner["fault"] for miner in told if miner["reason"]} == {"MINER"}
    assert honest(federation, liar) == [{"admitted"}] * len(lies)
    assert all(row["applied"] for row in federation.rows())
    assert told[1]["norm"] is None
    assert told[2]["norm"] == pytest.approx(999.0, rel=1e-3)
    assert max(miner["weight"] for miner in told) < 0.05
    liar.interrupt()


@pytest.mark.parametrize("name", ["late", "slow_drip"])
def test_who_never_finishes_costs_a_deadline_and_no_more(federation, five, name):
    liar = federation.miner("L2", "--attack", name, program=HOSTILE)
    deadline = ("--round.deadline", 4, "--limits.progress_seconds", 1)
    federation.validator([*five, liar], *deadline, rounds=1).ended()
    (told,) = answers(federation, liar)
    assert (told["status"], told["reason"]) == ("failed", "late")
    assert told["weight"] == 0
    (row,) = federation.rows()
    assert row["applied"]
    assert honest(federation, liar) == [{"admitted"}]
    assert row["seconds"]["total"] < 15
    liar.interrupt()
