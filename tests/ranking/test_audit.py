"""Grounded credit: an honest gradient knows its own text; what was made without that text earns nothing in the end."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.audit import TELLING, grounding, groundings
from fedgpt2.ranking.credit import Credit
from fedgpt2.ranking.evidence import Audit, Evidence, as_row, read_evidence
from fedgpt2.ranking.marks import Mark, Verdict
from fedgpt2.ranking.table import fold, ranks
from tests.ranking.worlds import AGGREGATE, evidence, rule

D, HONEST = 400, 8
LENGTH = 0.01
SEEDS = st.integers(0, 10_000)
OWN = Mark(Verdict.OWN, 1.0, Credit(raw=0.5, added=0.1, own=0.9))


def audit(hotkey: str, text: np.ndarray, x: np.ndarray, g: np.ndarray) -> Audit:
    """What the validator would measure where the loss of a text is linear, `text` its gradient."""
    after, control = (5.0 - LENGTH * float(text @ y / np.linalg.norm(y)) for y in (x, g))
    return Audit(hotkey=hotkey, windows=(0,), before=5.0, after=after, control=control, length=LENGTH)


def world(rounds: int, seed: int, lie: str, sample: int = 3) -> list[Evidence]:
    """Honest miners and three that know all honest gradients of the round, and send what their own text has no part in.

    mean: of the honest gradients, better than any of them; noisy: one honest gradient and noise enough for a vote.
    """
    draw = np.random.default_rng(seed)
    last, made = draw.normal(size=D), []
    for number in range(1, rounds + 1):
        g = draw.normal(size=D)
        texts = {f"h{i}": g + 2.0 * draw.normal(size=D) for i in range(HONEST)}
        texts |= {f"liar{i}": g + 2.0 * draw.normal(size=D) for i in range(3)}
        honest = [texts[f"h{i}"] for i in range(HONEST)]
        model = np.mean(honest, axis=0) if lie == "mean" else honest[0]
        xs = {name: text for name, text in texts.items() if name[0] == "h"}
        xs |= {f"liar{i}": model + 0.25 * np.linalg.norm(model) * draw.normal(size=D) / D**0.5 for i in range(3)}
        asked = draw.choice(sorted(xs), sample, replace=False).tolist() if sample else []
        round_ = evidence(number, xs, g, [(AGGREGATE, last)])
        audits = tuple(audit(name, texts[name], xs[name], g) for name in asked)
        made.append(msgspec.structs.replace(round_, audits=audits))
        last = np.mean(list(xs.values()), axis=0)
    return made


def liars_places(rounds: list[Evidence]) -> list[int]:
    return [line.rank for line in ranks(fold(rounds, rule()).table) if line.hotkey.startswith("liar")]


@pytest.mark.parametrize("lie", ["mean", "noisy"])
def test_who_made_it_without_its_own_text_ends_below_every_honest_miner(lie: str) -> None:
    for seed in range(3):
        assert min(liars_places(world(30, seed, lie))) == HONEST + 1


def test_without_audits_a_mean_of_the_others_would_be_the_best() -> None:
    assert liars_places(world(30, 0, "mean", sample=0)) == [1, 2, 3]


@given(SEEDS)
def test_honest_miners_lose_nothing_by_audits(seed: int) -> None:
    rounds = world(12, seed, "mean")
    honest = [name for name in fold(rounds, rule()).table.standings if name[0] == "h"]
    known = {name: s.grounded for name, s in fold(rounds, rule()).table.standings.items()}
    found = groundings({name: known[name].value(0.0) if known[name].weight else None for name in known})
    assert min(found[name] for name in honest) == 1.0


def test_large_batches_hold_no_noise_that_shows_and_nobody_is_asked_for_it() -> None:
    assert set(groundings({"a": TELLING / 2, "b": 0.0, "c": TELLING / 3}).values()) == {1.0}
    assert groundings({}) == {}


def test_half_of_the_median_is_enough_and_who_was_never_audited_is_trusted() -> None:
    known = {"a": 1.0, "b": 1.2, "c": 0.6, "d": 0.25, "e": -0.1, "new": None}
    found = groundings(known)
    assert found == {"a": 1.0, "b": 1.0, "c": 1.0, "d": pytest.approx(0.25 / 0.3), "e": 0.0, "new": 1.0}


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(0, 1e6))
def test_no_audit_says_more_than_the_bounds(before: float, after: float, length: float, unit: float) -> None:
    value = grounding(
        OWN, Audit(hotkey="a", windows=(1,), before=before, after=after, control=4.0, length=length), unit
    )
    assert value is None or -1.0 <= value <= 4.0


def test_it_says_nothing_of_replays_nor_of_what_was_not_measured() -> None:
    tried = Audit(hotkey="a", windows=(0,), before=5.0, after=4.99, control=4.99, length=0.01)
    assert grounding(OWN, tried, 1.0) == pytest.approx(0.5)
    assert grounding(Mark(Verdict.COPY, credit=OWN.credit), tried, 2.0) == pytest.approx(0.375)
    for mark in (Mark(Verdict.REPLAY, credit=OWN.credit), Mark(Verdict.FAULT), Mark(Verdict.OWN, 1.0)):
        assert grounding(mark, tried, 1.0) is None
    assert grounding(OWN, tried, 0.0) is None
    assert grounding(OWN, tried, math.nan) is None


def test_audits_are_evidence_and_read_back_to_the_bit() -> None:
    (round_,) = world(1, 0, "mean")
    assert len(round_.audits) == 3
    assert read_evidence(as_row(round_)) == round_
    with pytest.raises(ValueError, match="not admitted"):
        msgspec.convert({**as_row(round_), "audits": [{**as_row(round_.audits[0]), "hotkey": "nobody"}]}, Evidence)
