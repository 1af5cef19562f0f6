"""Proven credit: padding adds nothing of one's own, replays fade, and nothing comes of rounding errors."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from fedgpt2.ranking.evidence import Evidence, Free, as_row, read_evidence
from fedgpt2.ranking.marks import Mark, RoundOutcome
from fedgpt2.ranking.proven import BOUND, FLOOR, FULL, LEAST, UNTOLD, bound, proof, shares, weighed
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.credit import Credit, credits
from fedgpt2.ranking.reliability import Average
from fedgpt2.ranking.table import Entry, Table, advance, fold, ranks
from tests.ranking.worlds import MOMENT, evidence, noisy_rounds, refused, rule, shuffled

D = 60
SEEDS = st.integers(0, 10_000)
PROVEN = rule(score="proven")
Basis = list[tuple[Free, np.ndarray]]


def basis(draw: np.random.Generator, k: int = 3) -> Basis:
    named = [MOMENT, Free(kind="aggregate", age=1), Free(kind="aggregate", age=2)]
    return [(name, draw.normal(size=D)) for name in named[:k]]


def proved(x: np.ndarray, g: np.ndarray, free: Basis) -> tuple[float, float]:
    """What a round proves of x, and the part of its length that is its own."""
    credit = credits(evidence(1, {"m": x}, g, free), PROVEN)["m"]
    found = proof(Mark(RoundOutcome.OWN, credit=credit), float(np.linalg.norm(g)))
    assert found is not None
    return found, credit.own


def entries(rounds: list[Evidence], hotkey: str, **changes: object) -> list[Entry]:
    return [made[hotkey] for _, made in fold(rounds, replace(PROVEN, **changes)).entries]


def world(rounds: int, seed: int = 0, replays: int = 1) -> list[Evidence]:
    """Rounds of six honest miners, and one that sends the last aggregate, in which each g is much like the last."""
    draw = np.random.default_rng(seed)
    common, made = draw.normal(size=D), []
    last = common.copy()
    for number in range(1, rounds + 1):
        g = common + 0.7 * draw.normal(size=D)
        xs = {f"h{i}": g + 2.0 * draw.normal(size=D) for i in range(6)}
        mean = np.mean(list(xs.values()), axis=0)
        xs |= {f"r{i}": last * (1.0 + i) for i in range(replays)}
        made.append(evidence(number, xs, g, [(Free(kind="aggregate", age=1), last)], rule=PROVEN))
        last = mean
    return made


@given(SEEDS, st.integers(1, 3), st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3))
def test_free_vectors_change_what_is_proved_by_the_length_alone(seed: int, k: int, amounts: list[float]) -> None:
    draw = np.random.default_rng(seed)
    free, x, g = basis(draw, k), draw.normal(size=D), draw.normal(size=D)
    padded = x + sum(a * v for a, (_, v) in zip(amounts, free, strict=False))
    plain, found = (credits(evidence(1, {"m": each}, g, free), PROVEN)["m"] for each in (x, padded))
    length, unit = float(np.linalg.norm(padded)), float(np.linalg.norm(g))
    assert found.added * length == pytest.approx(plain.added * np.linalg.norm(x), abs=1e-9 * length * unit)
    assert proved(padded, g, free)[0] <= max(0.0, plain.added) / unit / plain.own + 1e-9


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_what_harms_adds_nothing_of_its_own(raw: float, added: float) -> None:
    credit = Credit(raw=raw, added=added, own=1.0)
    assert proof(Mark(RoundOutcome.OWN, credit=credit), 2.0) == (added if raw >= 0.0 else min(raw, added)) / 2.0
    assert raw >= 0.0 or credit.mixed < 0.0


def test_no_single_round_says_more_than_twice_what_the_median_proved_before() -> None:
    assert bound([]) == 1.0
    assert bound([0.1, 0.2, 0.4]) == BOUND * 0.2
    assert bound([-0.1, 0.0, 0.01]) == UNTOLD
    rounds = noisy_rounds({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, 12, d=D, rule=PROVEN)
    before = fold(rounds[:-1]).table
    steps = _steps(before, fold(rounds).table)
    most = bound([standing.proven.value(0.0) for standing in before.standings.values()])
    assert max(map(abs, steps)) <= most + 1e-12
    assert rounds[-1].products is not None
    harmful = tuple(-50.0 * value if i == 0 else value for i, value in enumerate(rounds[-1].products.gradient))
    worse = msgspec.structs.replace(rounds[-1].products, gradient=harmful)
    spoiled = fold([*rounds[:-1], msgspec.structs.replace(rounds[-1], products=worse)]).table
    assert _steps(before, spoiled)[0] == pytest.approx(-most)


@pytest.mark.parametrize(("middle", "least", "most"), [(0.1, 3, 4), (0.025, 3, 4), (0.01, 12, 20)])
def test_after_ten_ordinary_rounds_the_worst_one_is_soon_forgotten(middle: float, least: int, most: int) -> None:
    mean, below = Average(), 0
    for value in (*[middle] * 10, -bound([middle]), *[middle] * 40):
        mean = mean.add(value, PROVEN.memory)
        below += ramp(mean.value(0.0) / middle) < 1.0 - 1e-9
    assert least <= below <= most


def _steps(before: Table, after: Table) -> list[float]:
    """What the last round said of each, by hotkey."""
    kept = 1.0 - 1.0 / PROVEN.memory
    return [
        (after.standings[name].proven.total - kept * before.standings[name].proven.total) * PROVEN.memory
        for name in sorted(after.standings)
    ]


@given(SEEDS, st.floats(1e-3, 1e3))
def test_a_replay_proves_no_more_than_its_own_part(seed: int, noise: float) -> None:
    draw = np.random.default_rng(seed)
    free, g = basis(draw), draw.normal(size=D)
    last = free[1][1]
    largest = np.where(np.abs(last) >= np.quantile(np.abs(last), 0.9), last, 0.0)
    for replay in (last + noise * draw.normal(size=D), last + noise * g, last + noise * largest, largest):
        found, own = proved(replay, g, free)
        assert found <= own + 1e-9


@given(SEEDS, st.floats(1e-6, 1e6))
def test_length_changes_neither_what_is_ones_own_nor_the_score(seed: int, by: float) -> None:
    draw = np.random.default_rng(seed)
    free, x, other, g = basis(draw), *draw.normal(size=(3, D))
    assert proved(by * x, g, free) == pytest.approx(proved(x, g, free), rel=1e-9, abs=1e-9)
    scores = [
        advance(fold([]).table, evidence(1, {"a": scale * x, "b": other}, g, free), PROVEN)[1]["a"].mark.score
        for scale in (1.0, by, 2.0**9)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=1e-6, abs=1e-9)
    assert scores[2] == scores[0]


@given(SEEDS, st.floats(1e-3, 1e3))
def test_a_steep_round_proves_no_more_than_another(seed: int, by: float) -> None:
    draw = np.random.default_rng(seed)
    free, x, g = basis(draw), *draw.normal(size=(2, D))
    plain, steep = (advance(fold([]).table, evidence(1, {"a": x}, each, free))[1]["a"].proven for each in (g, by * g))
    assert plain is not None
    assert steep == pytest.approx(plain, abs=1e-9)
    assert -1.0 <= plain <= 1.0


@pytest.mark.parametrize("own", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_has_no_share(own: float, seed: int) -> None:
    rounds = world(40, seed)
    replayed = entries(rounds, "r0", own=own)
    assert all(entry.proven is not None and abs(entry.proven) < 1e-9 for entry in replayed)
    assert all(entry.place == 7 or (entry.mark.score or 0.0) < 1e-6 for entry in replayed)
    standing = {line.hotkey: line.rank for line in ranks(fold(rounds, rule(score="proven", own=own)).table)}
    assert standing["r0"] == 7


def test_a_miner_that_turns_to_replays_loses_its_share_within_memory() -> None:
    rounds = world(30)
    tail = []
    for each in world(90, 1)[30:]:
        assert each.products is not None
        own = msgspec.structs.replace(each, miners=tuple(_renamed(m, "r0", "h0") for m in each.miners))
        names = tuple({"r0": "h0", "h0": "r0"}.get(name, name) for name in each.products.miners)
        tail.append(msgspec.structs.replace(own, products=msgspec.structs.replace(each.products, miners=names)))
    told = entries([*rounds, *tail], "h0", own=0.0)
    before, after = told[29].proven, told[-1].proven
    assert before is not None
    assert after is not None
    assert after < before * 0.1  # 0.95^60 is 0.05
    assert told[49].proven < before * 0.5  # type: ignore[operator]


def _renamed(miner, one: str, other: str):
    return msgspec.structs.replace(miner, hotkey={one: other, other: one}.get(miner.hotkey, miner.hotkey))


def ramp(part: float) -> float:
    return min(1.0, max(0.0, (part - LEAST) / (FULL - LEAST)))


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(-1.0, 1.0), max_size=7))
def test_shares_are_parts_of_the_median(proven: dict[str, float]) -> None:
    found = shares(proven)
    middle = max(FLOOR, float(np.median(list(proven.values())))) if proven else 1.0
    assert found == pytest.approx({name: ramp(n / middle) for name, n in proven.items()})
    assert all(0.0 <= share <= 1.0 for share in found.values())


def test_rounding_errors_are_no_proof() -> None:
    assert shares({"a": 1e-7, "b": -1e-7, "c": 2e-17}) == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert shares({"a": 1e-7}) == {"a": 0.0}
    assert shares({"a": 0.5625 * FLOOR}) == {"a": pytest.approx(0.5)}
    assert shares({"a": 0.2}) == {"a": 1.0}
    assert shares({"a": -0.2}) == {"a": 0.0}
    assert shares({"a": -0.2, "b": -0.1, "c": 0.3}) == {"a": 0.0, "b": 0.0, "c": 1.0}
    assert shares({}) == {}


def test_shares_are_full_from_three_quarters_of_the_median_on_and_end_at_three_eighths() -> None:
    found = shares({"a": 0.08, "b": 0.08, "c": 0.08, "d": 0.09, "most": 0.06, "some": 0.05, "scrap": 0.03})
    assert found == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "most": 1.0, "some": 2 / 3, "scrap": 0.0})


def test_a_round_of_replays_alone_moves_no_rating_apart() -> None:
    draw = np.random.default_rng(4)
    free, g = basis(draw), draw.normal(size=D)
    xs = {"a": free[1][1] * 3.0, "b": free[1][1] - free[2][1], "c": free[0][1]}
    _, made = advance(fold([]).table, evidence(1, xs, g, free), rule(score="proven", own=0.0))
    assert all((entry.mark.score or 0.0) < 1e-9 * np.linalg.norm(g) for entry in made.values())


def test_newcomers_are_known_by_their_first_round() -> None:
    rounds = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0}, 10, d=D, rule=PROVEN)
    late = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0, "new": 4.0}, 11, d=D, rule=PROVEN)[10]
    table, _ = advance(fold(rounds).table, late)
    entry = advance(fold(rounds).table, late)[1]["new"]
    assert entry.mark.credit is not None
    assert late.products is not None
    assert entry.proven == pytest.approx(entry.mark.credit.added / late.products.gradient_norm)
    assert entry.mark.score is not None
    assert entry.mark.score <= max(0.0, entry.mark.credit.mixed)
    assert table.standings["new"].proven.weight == pytest.approx(1 / 20)


@pytest.mark.parametrize("verdict", list(RoundOutcome))
def test_only_a_gradient_of_ones_own_and_a_replay_say_anything(verdict: RoundOutcome) -> None:
    credit = Credit(raw=1.0, added=0.5, own=0.5)
    found = proof(Mark(verdict, credit=credit), 2.0)
    assert found == {RoundOutcome.OWN: 0.25, RoundOutcome.REPLAY: 0.0}.get(verdict)
    assert proof(Mark(RoundOutcome.OWN), 2.0) is None
    assert proof(Mark(RoundOutcome.OWN, credit=credit), 0.0) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_rewarded(value: float) -> None:
    assert proof(Mark(RoundOutcome.OWN, credit=Credit(raw=1.0, added=value, own=1.0)), 2.0) is None
    assert proof(Mark(RoundOutcome.OWN, credit=Credit(raw=1.0, added=1.0, own=1.0)), math.nan) is None
    made = weighed({"a": Mark(RoundOutcome.OWN, 3.0), "b": Mark(RoundOutcome.OWN, 2.0)}, {"b": 0.5}, {})
    assert (made["a"].score, made["b"].score) == (0.0, 2.0)


def test_one_that_was_not_measured_is_neither_compared_nor_forgotten() -> None:
    rounds = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0}, 8, d=D, rule=PROVEN)
    last = msgspec.structs.replace(rounds[7], products=None)
    before, after = entries([*rounds[:7], last], "a")[6:]
    assert after.mark.score is None
    assert after.proven == before.proven
    gone = msgspec.structs.replace(rounds[7], miners=(*rounds[7].miners, refused("liar")))
    assert fold([*rounds[:7], gone]).entries[7][1]["liar"].proven is None


@given(SEEDS)
def test_the_score_is_the_product_of_what_a_receipt_says(seed: int) -> None:
    rounds = noisy_rounds({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, 5, seed, d=D, rule=PROVEN)
    for _, made in fold(rounds).entries:
        proven = {hotkey: entry.proven for hotkey, entry in made.items() if entry.proven is not None}
        middle = max(FLOOR, float(np.median(list(proven.values()))))
        for hotkey, entry in made.items():
            assert entry.mark.credit is not None
            share = ramp(proven[hotkey] / middle)
            mixed = (entry.mark.credit.raw + 2.0 * entry.mark.credit.added) / 3.0
            assert entry.mark.score == pytest.approx(max(0.0, mixed) * share)


@given(SEEDS, st.integers(1, 5))
def test_order_reading_and_prefixes_change_no_bit(seed: int, cut: int) -> None:
    rounds = world(6, seed, replays=2)
    whole = fold(rounds)
    assert fold([shuffled(each, seed + i) for i, each in enumerate(rounds)]) == whole
    again = fold([read_evidence(msgspec.json.encode(as_row(each))) for each in rounds])
    assert repr(again) == repr(whole)
    assert fold(rounds[:cut]).entries == whole.entries[:cut]


@pytest.mark.parametrize("k", [2, 4])
def test_clones_prove_no_more_than_one(k: int) -> None:
    draw, names = np.random.default_rng(k), [f"s{i}" for i in range(k)]
    alone, many = [], []
    for number in range(1, 31):
        free, g = basis(draw), draw.normal(size=D)
        honest = {f"h{i}": g + 2.0 * draw.normal(size=D) for i in range(4)}
        one = g + 1.5 * draw.normal(size=D)
        alone.append(evidence(number, {**honest, "s0": one}, g, free))
        clones = dict.fromkeys(names, one)
        many.append(evidence(number, {**honest, **clones}, g, free, clusters=dict.fromkeys(names, 0)))
    single, several = fold(alone), fold(many)
    for (_, one_made), (_, made) in zip(single.entries, several.entries, strict=True):
        assert made["s0"].proven == one_made["s0"].proven
        assert made["s0"].mark.score == one_made["s0"].mark.score
        assert all(made[name].proven is None and made[name].mark.score is None for name in names[1:])
    weight = {line.hotkey: line.weight for line in ranks(single.table)}["s0"]
    assert math.fsum(line.weight for line in ranks(several.table) if line.hotkey in names) <= weight + 1e-12
