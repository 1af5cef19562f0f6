"""Contribution shares: padding adds no contribution, replays fade, rounding errors have no effect."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.protocol.round_record import BaselineVector, MinerRecord, RoundRecord, decode_record, encode_record
from fedgpt2.ranking.contribution_share import (
    BOUND,
    FLOOR,
    FLOOR_BOUND,
    FULL,
    LEAST,
    bound,
    contribution_shares,
    round_contribution,
)
from fedgpt2.ranking.credit import Credit, credits
from fedgpt2.ranking.outcomes import MinerOutcome, RoundOutcome, scaled
from fedgpt2.ranking.reliability import Average
from fedgpt2.ranking.table import Entry, Table, advance, fold, ranks
from tests.ranking.worlds import (
    MOMENT,
    noisy_rounds,
    refused,
    round_of,
    rule,
    shuffled,
    with_evidence,
    with_products,
)

D = 60
SEEDS = st.integers(0, 10_000)
RULE = rule()
Baseline = list[tuple[BaselineVector, np.ndarray]]


def baseline_vectors(draw: np.random.Generator, k: int = 3) -> Baseline:
    named = [MOMENT, BaselineVector(kind="aggregate", age=1), BaselineVector(kind="aggregate", age=2)]
    return [(name, draw.normal(size=D)) for name in named[:k]]


def contributed(x: np.ndarray, g: np.ndarray, free: Baseline) -> tuple[float, float]:
    """The contribution of x in a round, and its residual fraction."""
    credit = credits(round_of(1, {"m": x}, g, free))["m"]
    found = round_contribution(MinerOutcome(RoundOutcome.OWN, credit=credit), float(np.linalg.norm(g)))
    assert found is not None
    return found, credit.residual_fraction


def entries(rounds: list[RoundRecord], hotkey: str) -> list[Entry]:
    return [made[hotkey] for _, made in fold(rounds).entries]


def world(rounds: int, seed: int = 0, replays: int = 1) -> list[RoundRecord]:
    """Rounds of six honest miners, and one that sends the last aggregate, in which each g is much like the last."""
    draw = np.random.default_rng(seed)
    common, made = draw.normal(size=D), []
    last = common.copy()
    for number in range(1, rounds + 1):
        g = common + 0.7 * draw.normal(size=D)
        xs = {f"h{i}": g + 2.0 * draw.normal(size=D) for i in range(6)}
        mean = np.mean(list(xs.values()), axis=0)
        xs |= {f"r{i}": last * (1.0 + i) for i in range(replays)}
        made.append(round_of(number, xs, g, [(BaselineVector(kind="aggregate", age=1), last)]))
        last = mean
    return made


@given(SEEDS, st.integers(1, 3), st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_baseline_vectors_change_the_contribution_by_the_length_alone(seed: int, k: int, amounts: list[float]) -> None:
    draw = np.random.default_rng(seed)
    free, x, g = baseline_vectors(draw, k), draw.normal(size=D), draw.normal(size=D)
    padded = x + sum(a * v for a, (_, v) in zip(amounts, free, strict=False))
    plain, found = (credits(round_of(1, {"m": each}, g, free))["m"] for each in (x, padded))
    length, unit = float(np.linalg.norm(padded)), float(np.linalg.norm(g))
    assert found.added * length == pytest.approx(plain.added * np.linalg.norm(x), abs=1e-9 * length * unit)
    assert contributed(padded, g, free)[0] <= max(0.0, plain.added) / unit / plain.residual_fraction + 1e-9


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_a_harmful_step_contributes_at_most_its_whole_effect(raw: float, added: float) -> None:
    credit = Credit(raw=raw, added=added, residual_fraction=1.0)
    assert (
        round_contribution(MinerOutcome(RoundOutcome.OWN, credit=credit), 2.0)
        == (added if raw >= 0.0 else min(raw, added)) / 2.0
    )
    assert raw >= 0.0 or credit.mixed < 0.0


def test_no_single_round_counts_more_than_twice_the_median_before() -> None:
    assert bound([]) == 1.0
    assert bound([0.1, 0.2, 0.4]) == BOUND * 0.2
    assert bound([-0.1, 0.0, 0.01]) == FLOOR_BOUND
    rounds = noisy_rounds({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, 12, d=D)
    before = fold(rounds[:-1]).table
    steps = _steps(before, fold(rounds).table)
    most = bound([standing.contribution.value(0.0) for standing in before.standings.values()])
    assert max(map(abs, steps)) <= most + 1e-12
    measured = rounds[-1].evidence.products
    assert measured is not None
    harmful = tuple(-50.0 * value if i == 0 else value for i, value in enumerate(measured.gradient))
    spoiled = fold([*rounds[:-1], with_products(rounds[-1], gradient=harmful)]).table
    assert _steps(before, spoiled)[0] == pytest.approx(-most)


@pytest.mark.parametrize(("middle", "least", "most"), [(0.1, 3, 4), (0.025, 3, 4), (0.01, 12, 20)])
def test_after_ten_ordinary_rounds_the_worst_one_is_soon_forgotten(middle: float, least: int, most: int) -> None:
    mean, below = Average(), 0
    for value in (*[middle] * 10, -bound([middle]), *[middle] * 40):
        mean = mean.add(value, RULE.memory)
        below += ramp(mean.value(0.0) / middle) < 1.0 - 1e-9
    assert least <= below <= most


def _steps(before: Table, after: Table) -> list[float]:
    """What the last round added to each average, by hotkey."""
    kept = 1.0 - 1.0 / RULE.memory
    return [
        (after.standings[name].contribution.total - kept * before.standings[name].contribution.total) * RULE.memory
        for name in sorted(after.standings)
    ]


@given(SEEDS, st.floats(1e-3, 1e3))
def test_a_replay_contributes_at_most_its_residual_fraction(seed: int, noise: float) -> None:
    draw = np.random.default_rng(seed)
    free, g = baseline_vectors(draw), draw.normal(size=D)
    last = free[1][1]
    largest = np.where(np.abs(last) >= np.quantile(np.abs(last), 0.9), last, 0.0)
    for replay in (last + noise * draw.normal(size=D), last + noise * g, last + noise * largest, largest):
        found, own = contributed(replay, g, free)
        assert found <= own + 1e-9


@given(SEEDS, st.floats(1e-6, 1e6))
def test_length_changes_neither_contribution_nor_score(seed: int, by: float) -> None:
    draw = np.random.default_rng(seed)
    free, x, other, g = baseline_vectors(draw), *draw.normal(size=(3, D))
    assert contributed(by * x, g, free) == pytest.approx(contributed(x, g, free), rel=1e-9, abs=1e-9)
    scores = [
        advance(fold([]).table, round_of(1, {"a": scale * x, "b": other}, g, free))[1]["a"].score
        for scale in (1.0, by, 2.0**9)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=1e-6, abs=1e-9)
    assert scores[2] == scores[0]


@given(SEEDS, st.floats(1e-3, 1e3))
def test_a_steep_round_counts_no_more_than_another(seed: int, by: float) -> None:
    draw = np.random.default_rng(seed)
    free, x, g = baseline_vectors(draw), *draw.normal(size=(2, D))
    plain, steep = (
        advance(fold([]).table, round_of(1, {"a": x}, each, free))[1]["a"].ranking.proven for each in (g, by * g)
    )
    assert plain is not None
    assert steep == pytest.approx(plain, abs=1e-9)
    assert -1.0 <= plain <= 1.0


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_has_no_share(seed: int) -> None:
    rounds = world(40, seed)
    replayed = entries(rounds, "r0")
    assert all(entry.ranking.proven == 0.0 and entry.ranking.place == 7 for entry in replayed)
    standing = {line.hotkey: line.rank for line in ranks(fold(rounds).table)}
    assert standing["r0"] == 7


def test_a_miner_that_turns_to_replays_loses_its_share_within_memory() -> None:
    rounds = world(30)
    tail = []
    for each in world(90, 1)[30:]:
        assert each.evidence.products is not None
        names = tuple({"r0": "h0", "h0": "r0"}.get(name, name) for name in each.evidence.products.miners)
        swapped = with_evidence(each, products=None)
        swapped = msgspec.structs.replace(swapped, miners=tuple(_renamed(m, "r0", "h0") for m in each.miners))
        tail.append(with_evidence(swapped, products=msgspec.structs.replace(each.evidence.products, miners=names)))
    averages = [entry.ranking.proven for entry in entries([*rounds, *tail], "h0")]
    before, after = averages[29], averages[-1]
    assert before is not None
    assert after is not None
    assert after < before * 0.1  # 0.95^60 is 0.05
    assert averages[49] < before * 0.5  # type: ignore[operator]


def _renamed(miner: MinerRecord, one: str, other: str) -> MinerRecord:
    return msgspec.structs.replace(miner, hotkey={one: other, other: one}.get(miner.hotkey, miner.hotkey))


def ramp(part: float) -> float:
    return min(1.0, max(0.0, (part - LEAST) / (FULL - LEAST)))


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(-1.0, 1.0), max_size=7))
def test_shares_are_parts_of_the_median(proven: dict[str, float]) -> None:
    found = contribution_shares(proven)
    middle = max(FLOOR, float(np.median(list(proven.values())))) if proven else 1.0
    assert found == pytest.approx({name: ramp(n / middle) for name, n in proven.items()})
    assert all(0.0 <= share <= 1.0 for share in found.values())


def test_rounding_errors_have_no_share() -> None:
    assert contribution_shares({"a": 1e-7, "b": -1e-7, "c": 2e-17}) == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert contribution_shares({"a": 1e-7}) == {"a": 0.0}
    assert contribution_shares({"a": 0.5625 * FLOOR}) == {"a": pytest.approx(0.5)}
    assert contribution_shares({"a": 0.2}) == {"a": 1.0}
    assert contribution_shares({"a": -0.2}) == {"a": 0.0}
    assert contribution_shares({"a": -0.2, "b": -0.1, "c": 0.3}) == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert contribution_shares({}) == {}


def test_shares_are_full_from_three_quarters_of_the_median_on_and_end_at_three_eighths() -> None:
    found = contribution_shares({"a": 0.08, "b": 0.08, "c": 0.08, "d": 0.09, "most": 0.06, "some": 0.05, "scrap": 0.03})
    assert found == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "most": 1.0, "some": 2 / 3, "scrap": 0.0})


def test_a_round_of_replays_alone_moves_no_rating_apart() -> None:
    draw = np.random.default_rng(4)
    free, g = baseline_vectors(draw), draw.normal(size=D)
    xs = {"a": free[1][1] * 3.0, "b": free[1][1] - free[2][1], "c": free[0][1]}
    _, made = advance(fold([]).table, round_of(1, xs, g, free))
    assert {entry.verdict for entry in made.values()} == {RoundOutcome.REPLAY}
    assert {entry.ranking.place for entry in made.values()} == {None}


def test_newcomers_are_known_by_their_first_round() -> None:
    rounds = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0}, 10, d=D)
    late = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0, "new": 4.0}, 11, d=D)[10]
    table, _ = advance(fold(rounds).table, late)
    entry = advance(fold(rounds).table, late)[1]["new"]
    assert late.evidence.products is not None
    assert entry.ranking.added is not None
    assert entry.ranking.raw is not None
    assert entry.ranking.proven == pytest.approx(entry.ranking.added / late.evidence.products.gradient_norm)
    assert entry.score is not None
    assert entry.score <= max(0.0, (entry.ranking.raw + 2.0 * entry.ranking.added) / 3.0)
    assert table.standings["new"].contribution.weight == pytest.approx(1 / 20)


@pytest.mark.parametrize("verdict", list(RoundOutcome))
def test_only_own_gradients_and_replays_count(verdict: RoundOutcome) -> None:
    credit = Credit(raw=1.0, added=0.5, residual_fraction=0.5)
    found = round_contribution(MinerOutcome(verdict, credit=credit), 2.0)
    assert found == {RoundOutcome.OWN: 0.25, RoundOutcome.REPLAY: 0.0}.get(verdict)
    assert round_contribution(MinerOutcome(RoundOutcome.OWN), 2.0) is None
    assert round_contribution(MinerOutcome(RoundOutcome.OWN, credit=credit), 0.0) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_never_rewarded(value: float) -> None:
    assert (
        round_contribution(
            MinerOutcome(RoundOutcome.OWN, credit=Credit(raw=1.0, added=value, residual_fraction=1.0)), 2.0
        )
        is None
    )
    assert (
        round_contribution(
            MinerOutcome(RoundOutcome.OWN, credit=Credit(raw=1.0, added=1.0, residual_fraction=1.0)), math.nan
        )
        is None
    )
    outcomes = {"a": MinerOutcome(RoundOutcome.OWN, 3.0), "b": MinerOutcome(RoundOutcome.COPY)}
    made = scaled(outcomes, {"a": 0.5})
    assert (made["a"].score, made["b"].score) == (1.5, None)


def test_a_round_without_measurement_changes_no_average() -> None:
    rounds = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0}, 8, d=D)
    last = with_evidence(rounds[7], products=None)
    before, after = entries([*rounds[:7], last], "a")[6:]
    assert after.score is None
    assert after.ranking.proven == before.ranking.proven
    gone = msgspec.structs.replace(rounds[7], miners=(*rounds[7].miners, refused("mallory")))
    assert fold([*rounds[:7], gone]).entries[7][1]["mallory"].ranking.proven is None


@given(SEEDS)
def test_the_score_is_the_product_of_what_a_receipt_says(seed: int) -> None:
    rounds = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, 5, seed, d=D)
    for _, made in fold(rounds).entries:
        proven = {h: entry.ranking.proven for h, entry in made.items() if entry.ranking.proven is not None}
        middle = max(FLOOR, float(np.median(list(proven.values()))))
        for hotkey, entry in made.items():
            assert entry.ranking.raw is not None
            assert entry.ranking.added is not None
            share = ramp(proven[hotkey] / middle)
            mixed = (entry.ranking.raw + 2.0 * entry.ranking.added) / 3.0
            assert entry.score == pytest.approx(max(0.0, mixed) * share)


@given(SEEDS, st.integers(1, 5))
def test_order_reading_and_prefixes_change_no_bit(seed: int, cut: int) -> None:
    rounds = world(6, seed, replays=2)
    whole = fold(rounds)
    assert fold([shuffled(each, seed + i) for i, each in enumerate(rounds)]) == whole
    again = fold([decode_record(encode_record(each)) for each in rounds])
    assert repr(again) == repr(whole)
    assert fold(rounds[:cut]).entries == whole.entries[:cut]


@pytest.mark.parametrize("k", [2, 4])
def test_clones_contribute_no_more_than_one(k: int) -> None:
    draw, names = np.random.default_rng(k), [f"s{i}" for i in range(k)]
    alone, many = [], []
    for number in range(1, 31):
        free, g = baseline_vectors(draw), draw.normal(size=D)
        honest = {f"h{i}": g + 2.0 * draw.normal(size=D) for i in range(4)}
        one = g + 1.5 * draw.normal(size=D)
        alone.append(round_of(number, {**honest, "s0": one}, g, free))
        clones = dict.fromkeys(names, one)
        many.append(round_of(number, {**honest, **clones}, g, free, clusters=dict.fromkeys(names, 0)))
    single, several = fold(alone), fold(many)
    for (_, one_made), (_, made) in zip(single.entries, several.entries, strict=True):
        assert made["s0"].ranking.proven == one_made["s0"].ranking.proven
        assert made["s0"].score == one_made["s0"].score
        assert all(made[name].ranking.proven is None and made[name].score is None for name in names[1:])
    weight = {line.hotkey: line.weight for line in ranks(single.table)}["s0"]
    assert math.fsum(line.weight for line in ranks(several.table) if line.hotkey in names) <= weight + 1e-12
