"""Audits: an honest gradient holds the noise of its own text; one made without that text earns nothing in the end."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.protocol.round_record import Audit, RoundRecord, decode_record, encode_record
from fedgpt2.ranking.audit_sample import draw_sample
from fedgpt2.ranking.credit import Credit
from fedgpt2.ranking.data_authenticity import (
    ENOUGH,
    HIGHEST,
    LEAST,
    LOWEST,
    TELLING,
    AuditContext,
    AuditHistory,
    audit_signal,
    authenticity,
    update_audits,
)
from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome
from fedgpt2.ranking.rating import Rating
from fedgpt2.ranking.reliability import Average
from fedgpt2.ranking.table import Standing, Table, advance, fold, ranks
from fedgpt2.types import Hotkey
from tests.ranking.worlds import AGGREGATE, round_of, rule, with_evidence

D, HONEST = 400, 8
SEEDS = st.integers(0, 10_000)
OWN = MinerOutcome(RoundOutcome.OWN, 1.0, Credit(raw=0.5, added=0.1, residual_fraction=0.9))


def audit(hotkey: str, text: np.ndarray, x: np.ndarray) -> Audit:
    """The audit of contribution x where the gradient on the assigned text is `text`."""
    return Audit(hotkey=Hotkey(hotkey), windows=(0,), slope=float(text @ x / np.linalg.norm(x)))


def audited(shown: dict[str, list[float]], tokens: dict[str, int] | None = None) -> dict[str, AuditContext]:
    """Miners whose audits showed this, round by round; the first ones of all come first."""
    histories = {name: AuditContext(AuditHistory(), (tokens or {}).get(name, 1024)) for name in shown}
    for number in range(max((len(values) for values in shown.values()), default=0)):
        histories = after(
            histories, {name: values[number] for name, values in shown.items() if number < len(values)}, number + 1
        )
    return histories


def after(known: dict[str, AuditContext], found: dict[str, float], number: int) -> dict[str, AuditContext]:
    """The same miners after a round in which audits showed this."""
    histories = update_audits(known, found, known.keys(), number)
    return {name: replace(each, history=histories.get(name, each.history)) for name, each in known.items()}


def test_a_low_median_is_replaced_by_a_half() -> None:
    histories = AuditHistory(Average(0.3, 1.0), last_shown=2 * 1024 * TELLING, last_round=1)  # after very many audits
    known = {name: AuditContext(histories, 1024) for name in "abc"}
    drawn = (8 * 0.3 + 0.25 * 0.5) / (8 + 0.25)
    wanted = (drawn / 0.5 - LEAST) / (ENOUGH - LEAST)
    assert authenticity(known) == {name: pytest.approx(wanted) for name in "abc"}


def history_after(times: int, part: float) -> AuditHistory:
    """What is left of many audits that all showed this part of the median, of 1."""
    found = audited({"honest": [1.0] * times, "other": [1.0] * times, "it": [part] * times})
    return found["it"].history


def world(rounds: int, seed: int, attack: str, sample: int = 3) -> list[RoundRecord]:
    """Honest miners and three that know all honest gradients of the round, and send what their own text has no part in.

    mean: of the honest gradients, better than any of them; noisy: one honest gradient and noise enough for a vote.
    """
    draw = np.random.default_rng(seed)
    last, made = draw.normal(size=D), []
    for number in range(1, rounds + 1):
        true = draw.normal(size=D)
        g = true + draw.normal(size=D)  # it has noise of its own
        texts = {f"h{i}": true + 2.0 * draw.normal(size=D) for i in range(HONEST)}
        texts |= {f"mallory{i}": true + 2.0 * draw.normal(size=D) for i in range(3)}
        honest = [texts[f"h{i}"] for i in range(HONEST)]
        model = np.mean(honest, axis=0) if attack == "mean" else honest[0]
        xs = {name: text for name, text in texts.items() if name[0] == "h"}
        xs |= {f"mallory{i}": model + 0.25 * np.linalg.norm(model) * draw.normal(size=D) / D**0.5 for i in range(3)}
        asked = draw.choice(sorted(xs), sample, replace=False).tolist() if sample else []
        record = round_of(number, xs, g, [(AGGREGATE, last)])
        audits = tuple(audit(name, texts[name], xs[name]) for name in asked)
        made.append(with_evidence(record, audits=audits))
        last = np.mean(list(xs.values()), axis=0)
    return made


def hostile_places(rounds: list[RoundRecord]) -> list[int]:
    return [line.rank for line in ranks(fold(rounds, rule()).table) if line.hotkey.startswith("mallory")]


@pytest.mark.parametrize("attack", ["mean", "noisy"])
def test_a_gradient_made_without_the_assigned_text_ends_below_every_honest_miner(attack: str) -> None:
    for seed in range(3):
        assert min(hostile_places(world(30, seed, attack))) == HONEST + 1


def test_without_audits_a_mean_of_the_others_would_be_the_best() -> None:
    assert hostile_places(world(30, 0, "mean", sample=0)) == [1, 2, 3]


def test_a_rating_earned_before_failed_audits_is_not_paid() -> None:
    """Good work for 30 rounds, then a mean of the others: the rating is still the old one, the score is not."""
    draw, standing = np.random.default_rng(5), Standing(Rating(40.0, 1.0), audits=history_after(20, 1.0))
    record = round_of(2, {name: draw.normal(size=D) for name in ("a", "b", "c", "mallory")}, draw.normal(size=D))
    histories = replace(standing, audits=history_after(60, 0.0))
    table = Table(1, {name: histories if name == "mallory" else standing for name in ("a", "b", "c", "mallory")})
    after, entries = advance(table, record, rule())
    lines = {line.hotkey: line for line in ranks(after)}
    assert entries["mallory"].ranking.trusted == lines["mallory"].trusted < 0.05
    assert lines["mallory"].rank == 4
    assert lines["mallory"].rating > 38.0
    assert lines["mallory"].score < 0.05 * lines["a"].score


@given(SEEDS)
def test_honest_miners_lose_next_to_nothing_by_audits(seed: int) -> None:
    standings = fold(world(12, seed, "mean"), rule()).table.standings
    found = authenticity({name: AuditContext(s.audits, 1024) for name, s in standings.items()})
    assert np.mean([part for name, part in found.items() if name[0] == "h"]) > 0.9


def test_large_batches_show_no_noise_and_audits_have_no_weight() -> None:
    low = audited({"a": [TELLING / 2], "b": [0.0], "c": [TELLING / 2]})
    assert set(authenticity(low).values()) == {1.0}
    assert authenticity({}) == {}
    assert authenticity(audited({"a": [1.0]}, {"a": 0})) == {"a": 1.0}


def test_few_audits_are_shrunk_towards_the_median_and_without_audits_a_miner_is_trusted() -> None:
    honest = {f"h{i}": [0.4] * 60 for i in range(5)}
    found = authenticity(audited(honest | {"once": [0.0], "always": [0.0] * 60, "new": []}))
    shrinkage = (TELLING / 0.4) ** 2
    assert {found[name] for name in (*honest, "new")} == {1.0}
    assert found["once"] == pytest.approx((shrinkage / (1 + shrinkage) - LEAST) / (ENOUGH - LEAST))
    assert found["always"] == 0.0


def test_where_noise_is_large_one_audit_suffices() -> None:
    loud, low = (audited({"a": [m], "b": [m], "c": [m], "mallory": [0.0]}) for m in (2.0, 0.31))
    assert authenticity(loud)["mallory"] < 0.05
    assert authenticity(low)["mallory"] > 0.4


def test_one_lucky_audit_does_not_outweigh_many_failed_ones() -> None:
    """A hostile miner's text may happen to be like the scoring windows: once in a while its audit says anything."""
    honest = {f"h{i}": [1.0] * 8 for i in range(4)}
    found = audited(honest | {"mallory": [*[0.0] * 7, 40.0]})
    assert authenticity(found)["mallory"] < 0.1
    assert audited(honest | {"first": [40.0]})["first"].history.mean.value(0.0) == HIGHEST


def test_one_bad_audit_does_not_cost_an_honest_miner_its_credit() -> None:
    honest = {f"h{i}": [1.0] * 8 for i in range(4)}
    assert audited(honest | {"first": [-40.0]})["first"].history.mean.value(0.0) == LOWEST
    unlucky = [authenticity(audited(honest | {"it": [*[1.0] * good, -40.0]}))["it"] for good in range(5)]
    assert unlucky == sorted(unlucky)
    assert unlucky[1] < 0.1
    assert unlucky[2] > 0.3
    assert unlucky[4] > 0.75
    assert authenticity(audited(honest | {"it": [1.0, 1.0, -40.0, 1.0]}))["it"] > 0.7


def test_scatter_as_large_as_the_signal_is_separated() -> None:
    draw = np.random.default_rng(0)
    mallory, honest = (np.clip(draw.normal(mean, 1.0, 100_000), LOWEST, HIGHEST).mean() for mean in (0.0, 1.0))
    assert 0.19 < mallory / honest < 0.21 < LEAST


@given(SEEDS, st.floats(1.05, 1.25))
def test_the_time_of_audits_makes_no_difference_while_the_signal_grows(seed: int, growth: float) -> None:
    """Ten are audited early and never since, the others all along: none is held to what it could not show then."""
    draw = np.random.default_rng(seed)
    known = {f"h{i:02d}": AuditContext(AuditHistory(), 1024) for i in range(20)}
    for number in range(24):
        asked = draw.choice(sorted(known)[: 20 if number < 8 else 10], 4, replace=False)
        known = after(known, {name: 0.5 * growth**number * draw.uniform(0.9, 1.1) for name in asked}, number + 1)
    assert min(authenticity(known).values()) > 0.75


def test_one_batch_of_two_texts_does_not_do_for_two_names() -> None:
    honest = {f"h{i}": [1.0] * 8 for i in range(6)}
    found = authenticity(audited(honest | {"one": [0.5] * 8, "other": [0.5] * 8}))
    assert found["h0"] == 1.0
    assert found["one"] == found["other"] < 0.55


def test_larger_batches_are_compared_by_their_tokens() -> None:
    found = authenticity(audited({"a": [1.0], "b": [1.0], "c": [1.0], "large": [0.125]}, {"large": 8192}))
    assert set(found.values()) == {1.0}


def earners(seed: int, renamed: bool) -> float:
    """What is left to two of 32 that send no more than a fifth of their own text, while six others draw audits.

    New names are the likeliest to be audited; they show nothing and stay two rounds, if they are `renamed`.
    """
    draw, table = np.random.default_rng(seed), Table()
    known = {name: AuditHistory() for name in (*(f"h{i:02d}" for i in range(24)), "earner0", "earner1")}
    for number in range(1, 51):
        burners = {f"burner{i}-{(number - i % 2) // 2 if renamed else 0}" for i in range(6)}
        histories = {
            name: known.get(name, AuditHistory()) for name in (*known, *burners) if name[0] != "b" or name in burners
        }
        standings = {
            name: Standing(Rating(25.0, 8.0 if name[0] == "b" else 4.0), audits=t) for name, t in histories.items()
        }
        asked = draw_sample(replace(table, standings=standings), sorted(histories), 4, draw.bytes(8))
        shown = {name: {"h": 1.0, "e": 0.2, "b": 0.0}[name[0]] + 0.2 * draw.normal() for name in asked}
        known = {
            name: each.history
            for name, each in after({n: AuditContext(t, 1024) for n, t in histories.items()}, shown, number).items()
        }
    found = authenticity({name: AuditContext(each, 1024) for name, each in known.items()})
    return float(np.mean([found["earner0"], found["earner1"]]))


@pytest.mark.parametrize("renamed", [False, True])
def test_a_quarter_of_the_miners_does_not_set_what_an_audit_shows(renamed: bool) -> None:
    assert np.mean([earners(seed, renamed) for seed in range(4)]) < 0.15


@given(SEEDS, st.integers(1, 20))
def test_hotkeys_make_no_difference(seed: int, sample: int) -> None:
    """Every bit of it: however a hotkey was ground."""
    draw = np.random.default_rng(seed)
    names = [f"m{i:02d}" for i in range(20)]
    others = dict(zip(names, draw.permutation(names).tolist(), strict=True))
    found = []
    for named in (dict(zip(names, names, strict=True)), others):
        rounds = np.random.default_rng(seed + 1)
        known = {named[name]: AuditContext(AuditHistory(), 1024) for name in names}
        for number in range(1, 7):
            asked = rounds.choice(names, sample, replace=False)
            known = after(known, {named[name]: float(rounds.normal(0.6, 0.5)) for name in asked}, number)
        parts = authenticity(known)
        found.append([parts[named[name]] for name in names])
    assert found[0] == found[1]


def test_where_most_miners_use_no_text_half_the_signal_still_counts() -> None:
    """Those that do are audited more often than most of the others, so an audit shows what it should."""
    honest, hostile = {f"h{i}": 1.0 for i in range(6)}, {f"mallory{i}": 0.1 for i in range(3)}
    known = after(audited({name: [] for name in [*honest, *hostile, *(f"more{i}" for i in range(4))]}), honest, 1)
    known = after(known, {f"more{i}": 0.1 for i in range(4)}, 2)
    for number in range(3, 11):
        known = after(known, honest | hostile, number)
    found = authenticity(known)
    assert found["h0"] == 1.0
    assert found["mallory0"] < 0.05


def test_a_distrusted_miner_does_not_keep_the_credit_of_a_cluster() -> None:
    """A faster machine computes the text of h0 in place of its own: until audits tell, the credit is its own."""
    draw, rounds = np.random.default_rng(4), []
    for number in range(1, 25):
        true = draw.normal(size=D)
        texts = {name: true + 2.0 * draw.normal(size=D) for name in ("h0", "h1", "h2", "h3", "mallory")}
        xs = texts | {"mallory": texts["h0"] * 1.001}
        clusters = {"h0": 0, "mallory": 0, "h1": 1, "h2": 2, "h3": 3}
        made = round_of(number, xs, true, clusters=clusters, committed={"mallory": 0.5})
        audits = tuple(audit(name, texts[name], xs[name]) for name in xs)
        rounds.append(with_evidence(made, audits=audits))
    entries = [made for _, made in fold(rounds, rule()).entries]
    assert entries[0]["mallory"].verdict is RoundOutcome.OWN
    assert entries[0]["h0"].verdict is RoundOutcome.COPY
    assert entries[-1]["h0"].verdict is RoundOutcome.OWN
    assert (entries[-1]["mallory"].verdict, entries[-1]["mallory"].ranking.keeper) == (RoundOutcome.COPY, "h0")


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_no_audit_counts_more_than_the_bounds(slope: float, unit: float) -> None:
    value = audit_signal(OWN, Audit(hotkey=Hotkey("a"), windows=(1,), slope=slope), unit)
    assert value is None or math.isfinite(value)
    if value is not None:
        (histories,) = update_audits({"a": AuditContext(AuditHistory(), 1024)}, {"a": value}, ["a"], 1).values()
        assert LOWEST <= histories.mean.value(0.0) <= HIGHEST


def test_the_weight_of_audits_rises_with_the_signal() -> None:
    parts = []
    for shown in (0.5, 0.75, 1.0, 1.5):
        honest = {f"h{i}": [shown * TELLING] * 60 for i in range(4)}
        parts.append(authenticity(audited(honest | {"mallory": [0.0] * 60}))["mallory"])
    assert parts == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_low_first_audits_do_not_lower_the_median_for_long() -> None:
    """The first two audits are of hostile miners; the first audits of the others correct M."""
    known = audited({"mallory": [0.02], "other": [0.02], **{f"h{i}": [] for i in range(8)}})
    known = after(known, {f"h{i}": 0.9 for i in range(8)}, 2)
    for number in range(3, 6):
        known = after(known, {"mallory": 0.02}, number)
    assert authenticity(known)["mallory"] < 0.3
    assert authenticity(known)["h0"] == 1.0


def test_no_signal_without_a_measurement_and_a_replay_counts_as_0() -> None:
    tried = Audit(hotkey=Hotkey("a"), windows=(0,), slope=1.0)
    assert audit_signal(OWN, tried, 1.0) == pytest.approx(0.5)
    assert audit_signal(MinerOutcome(RoundOutcome.COPY, credit=OWN.credit), tried, 2.0) == pytest.approx(0.25)
    for mark in (MinerOutcome(RoundOutcome.FAULT), MinerOutcome(RoundOutcome.OWN, 1.0)):
        assert audit_signal(mark, tried, 1.0) is None
    assert audit_signal(MinerOutcome(RoundOutcome.REPLAY, credit=OWN.credit), tried, 1.0) == 0.0
    assert audit_signal(OWN, tried, 0.0) is None
    assert audit_signal(OWN, tried, math.nan) is None


def test_audits_are_evidence_and_read_back_to_the_bit() -> None:
    (record,) = world(1, 0, "mean")
    audits = record.evidence.audits
    assert len(audits) == 3
    assert decode_record(encode_record(record)) == record
    stray = msgspec.structs.replace(audits[0], hotkey=Hotkey("nobody"))
    with pytest.raises(ValueError, match="not admitted"):
        with_evidence(record, audits=(stray,))
    with pytest.raises(ValueError, match="twice"):
        with_evidence(record, audits=(*audits, audits[0]))
