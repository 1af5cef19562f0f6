"""The table: a pure function of the evidence, in any order of miners, prefix by prefix."""

import math

import msgspec
import numpy as np
import pytest
from fedgpt2.ranking.evidence import Evidence, MinerEvidence, as_row, read_evidence
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.ranking.table import Table, advance, fold, ranks
from tests.ranking.worlds import AGGREGATE, evidence, noisy_rounds, refused, rule, shuffled, unheard

HONEST = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.5, "e": 1.0}


def order(rounds: list[Evidence]) -> list[str]:
    return [line.hotkey for line in ranks(fold(rounds).table)]


def test_better_gradients_rank_higher() -> None:
    lines = ranks(fold(noisy_rounds(HONEST, 40)).table)
    assert [line.hotkey for line in lines] == list(HONEST)
    assert [line.rank for line in lines] == [1, 2, 3, 4, 5]
    assert math.fsum(line.weight for line in lines) == pytest.approx(1.0)
    assert lines[0].weight_u16 == 65535
    assert [line.weight for line in lines] == sorted((line.weight for line in lines), reverse=True)
    assert all(line.sigma < 8.0 and line.tier == "paid" and line.refusals == 0 for line in lines)


@given(st.integers(0, 1000), st.sampled_from(["proven", "projected", "leave_one_out", "raw"]), st.sampled_from([0, 5]))
def test_the_order_of_miners_changes_no_bit(seed: int, score: str, smooth: int) -> None:
    rounds = noisy_rounds(HONEST, 6, seed, d=20, rule=rule(score=score, smooth=smooth, recent=2))
    assert fold([shuffled(each, seed + i) for i, each in enumerate(rounds)]) == fold(rounds)


@given(st.integers(0, 1000), st.integers(1, 7))
def test_the_ranking_of_a_beginning_is_the_beginning_of_the_ranking(seed: int, cut: int) -> None:
    rounds = noisy_rounds(HONEST, 8, seed, d=20)
    whole, part = fold(rounds), fold(rounds[:cut])
    assert part.entries == whole.entries[:cut]
    table = part.table
    for each in rounds[cut:]:
        table, _ = advance(table, each)
    assert table == whole.table


def test_evidence_that_was_written_and_read_ranks_the_same_to_the_bit() -> None:
    rounds = noisy_rounds(HONEST, 20, d=50)
    again = [read_evidence(msgspec.json.encode(as_row(each))) for each in rounds]
    assert fold(again) == fold(rounds)
    assert repr(ranks(fold(again).table)) == repr(ranks(fold(rounds).table))


def test_rounds_come_in_order() -> None:
    rounds = noisy_rounds(HONEST, 2)
    with pytest.raises(ValueError, match="round 1 after round 2"):
        fold([rounds[1], rounds[0]])
    with pytest.raises(ValueError, match="round 1 after round 1"):
        fold([rounds[0], rounds[0]])


def test_other_settings_replace_those_the_rounds_name() -> None:
    rounds = noisy_rounds(HONEST, 5, rule=rule(tau=0.5))
    assert fold(rounds) == fold(rounds, rule(tau=0.5))
    assert fold(rounds) != fold(rounds, rule(tau=0.1))
    mixed = [*rounds, *noisy_rounds(HONEST, 6, rule=rule(beta=2.0))[5:]]
    table, _ = advance(fold(rounds, rule(tau=0.5)).table, mixed[5], rule(beta=2.0))
    assert fold(mixed).table == table


def joined(rounds: list[Evidence], others: list[MinerEvidence]) -> list[Evidence]:
    return [msgspec.structs.replace(each, miners=(*each.miners, *others)) for each in rounds]


def test_a_miner_that_is_refused_ends_last_and_one_cut_off_is_not_blamed() -> None:
    rounds = joined(noisy_rounds(HONEST, 25), [refused("liar"), unheard("cut")])
    history = fold(rounds)
    lines = {line.hotkey: line for line in ranks(history.table)}
    assert order(rounds)[-2:] == ["cut", "liar"]
    assert lines["liar"].refusals == 25
    assert lines["liar"].weight == lines["cut"].weight == 0.0
    assert (lines["cut"].rating, lines["cut"].reliability, lines["cut"].refusals) == (25.0, 1.0, 0)
    entry = history.entries[0][1]["liar"]
    assert (entry.mark.verdict, entry.place, entry.compared) == ("fault", 6, 6)
    assert entry.after.mu < entry.before.mu


def test_partial_participation_moves_only_those_who_took_part() -> None:
    draw = np.random.default_rng(5)
    rounds = []
    for number, each in enumerate(noisy_rounds(HONEST, 60, seed=4), 1):
        assert each.products is not None
        g = draw.normal(size=60)
        asked = sorted(draw.choice(list(HONEST), 3, replace=False))
        rounds.append(evidence(number, {n: g + draw.normal(size=60) * 4 / HONEST[n] for n in asked}, g))
    history = fold(rounds)
    for number, made in history.entries:
        assert set(made) == {m.hotkey for m in rounds[number - 1].miners}
    found = [line.hotkey for line in ranks(history.table)]
    assert found[0] == "a"
    assert found[-1] == "e"


def test_free_riders_end_below_every_honest_miner() -> None:
    draw = np.random.default_rng(11)
    d, common, rounds = 300, draw.normal(size=300), []
    last = common.copy()
    for number in range(1, 41):
        g = common + 0.7 * draw.normal(size=d)  # much of each gradient is that of the round before
        honest = {f"h{i}": g + 2.0 * draw.normal(size=d) for i in range(6)}
        liars = {"replay": last, "noisy": last + 0.3 * draw.normal(size=d), "flip": -g, "nothing": 0.0 * g}
        rounds.append(evidence(number, {**honest, **liars}, g, [(AGGREGATE, last)]))
        last = np.mean(list(honest.values()), axis=0)
    assert set(order(rounds)[:6]) == {f"h{i}" for i in range(6)}
    raw = [line.hotkey for line in ranks(fold(rounds, rule(score="raw", own=0.0)).table)]
    assert raw.index("replay") < 6  # what projection is for


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_k_hotkeys_with_one_gradient_earn_no_more_than_one(k: int, turns: bool, seed: int) -> None:
    draw, names = np.random.default_rng(seed), [f"s{i}" for i in range(k)]
    alone, many = [], []
    for number in range(1, 41):
        g = draw.normal(size=80)
        honest = {f"h{i}": g + 2.0 * draw.normal(size=80) for i in range(4)}
        one = g + 1.5 * draw.normal(size=80)  # the best of all
        alone.append(evidence(number, {**honest, "s0": one}, g))
        first = draw.integers(k) if turns else 0
        many.append(
            evidence(
                number,
                {**honest, **{name: one * (1 + 1e-3 * i) for i, name in enumerate(names)}},
                g,
                clusters={name: 0 for name in names},
                committed={name: float((i - first) % k) for i, name in enumerate(names)},
            )
        )
    earned = {line.hotkey: line.weight for line in ranks(fold(many).table)}
    single = {line.hotkey: line.weight for line in ranks(fold(alone).table)}["s0"]
    assert math.fsum(earned[name] for name in names) <= single + 1e-12
    assert single > 0.0


def test_a_score_that_is_no_number_is_nobodys_gain() -> None:
    """The inner product of one contribution was not finite: it was left out of the evidence."""
    rounds = noisy_rounds(HONEST, 10)
    broken = []
    for each in rounds:
        assert each.products is not None
        keep = [i for i, name in enumerate(each.products.miners) if name != "a"]
        p = each.products
        less = msgspec.structs.replace(
            p,
            miners=tuple(p.miners[i] for i in keep),
            gradient=tuple(p.gradient[i] for i in keep),
            contributions_free=tuple(p.contributions_free[i] for i in keep),
            gram=None,
        )
        broken.append(msgspec.structs.replace(each, products=less))
    lines = {line.hotkey: line for line in ranks(fold(broken).table)}
    assert (lines["a"].rating, lines["a"].sigma) == (25.0, 25 / 3)
    assert lines["a"].weight == 0.0
    assert lines["a"].rank == 5 or lines["a"].score <= min(line.score for line in lines.values())


def test_a_round_bad_as_a_whole_blames_nobody() -> None:
    rounds = noisy_rounds(HONEST, 10)
    table = fold(rounds).table
    bad = Evidence(
        round=11,
        applied=False,
        reason="too_few",
        rule=rounds[0].rule,
        miners=tuple(refused(name, "late") for name in HONEST),
    )
    after, entries = advance(table, bad)
    before = {line.hotkey: line for line in ranks(table)}
    for line in ranks(after):
        old = before[line.hotkey]
        assert (line.rating, line.sigma, line.reliability, line.weight) == (
            old.rating,
            old.sigma,
            old.reliability,
            old.weight,
        )
        assert line.refusals == 1
    assert {entry.mark.verdict for entry in entries.values()} == {"excused"}


def test_averaging_scores_finds_the_order_sooner_where_noise_is_large() -> None:
    quality = {name: 0.1 + 0.02 * i for i, name in enumerate(reversed(HONEST))}
    agree = {0: 0, 30: 0}
    for smooth in agree:
        for seed in range(5):
            lines = ranks(fold(noisy_rounds(quality, 30, seed, d=40), rule(smooth=smooth)).table)
            place = {line.hotkey: line.rank for line in lines}
            agree[smooth] += sum(
                (place[m] < place[n]) == (quality[m] > quality[n]) for m in quality for n in quality if m < n
            )
    assert agree[30] >= agree[0] - 2  # never much worse; how much better is measured in docs/ranking.md


@pytest.mark.parametrize("seed", range(4))
def test_averaged_scores_weigh_a_round_alike_however_long_its_gradient(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = [{name: draw.normal(size=20) for name in "abcdefgh"} for _ in range(2)]
    g = draw.normal(size=20)
    short, long = (
        fold([evidence(1, rows[0], scale * g), evidence(2, rows[1], g)], rule(score="raw", smooth=5)).table
        for scale in (1.0, 1024.0)
    )
    assert [each.rating for each in long.standings.values()] == [each.rating for each in short.standings.values()]


def test_nobody_is_an_empty_table() -> None:
    assert ranks(fold([]).table) == []
    assert fold([]).table.standings == Table().standings
