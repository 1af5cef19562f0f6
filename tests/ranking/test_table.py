"""The table: a pure function of the records, in any order of miners, prefix by prefix."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.protocol.round_record import MinerRecord, RoundRecord, decode_record, encode_record
from fedgpt2.ranking.table import Table, advance, fold, ranks, with_ranking
from tests.ranking.worlds import (
    AGGREGATE,
    failed,
    noisy_rounds,
    refused,
    round_of,
    rule,
    shuffled,
    with_evidence,
    with_products,
)
from tests.records import round_record

HONEST = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.5, "e": 1.0}


def order(rounds: list[RoundRecord]) -> list[str]:
    return [line.hotkey for line in ranks(fold(rounds).table)]


def test_better_gradients_rank_higher() -> None:
    lines = ranks(fold(noisy_rounds(HONEST, 40)).table)
    assert [line.hotkey for line in lines] == list(HONEST)
    assert [line.rank for line in lines] == [1, 2, 3, 4, 5]
    assert math.fsum(line.weight for line in lines) == pytest.approx(1.0)
    assert lines[0].weight_u16 == 65535
    assert [line.weight for line in lines] == sorted((line.weight for line in lines), reverse=True)
    assert all(line.sigma < 8.0 and line.tier == "paid" and line.refusals == 0 for line in lines)


@given(st.integers(0, 1000))
def test_the_order_of_miners_changes_no_bit(seed: int) -> None:
    rounds = noisy_rounds(HONEST, 6, seed, d=20)
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


def test_records_that_were_encoded_and_decoded_rank_the_same_to_the_bit() -> None:
    rounds = noisy_rounds(HONEST, 20, d=50)
    again = [decode_record(encode_record(each)) for each in rounds]
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
    mixed = [*rounds, *noisy_rounds(HONEST, 6, rule=rule(memory=5))[5:]]
    table, _ = advance(fold(rounds, rule(tau=0.5)).table, mixed[5], rule(memory=5))
    assert fold(mixed).table == table


def joined(rounds: list[RoundRecord], others: list[MinerRecord]) -> list[RoundRecord]:
    return [msgspec.structs.replace(each, miners=(*each.miners, *others)) for each in rounds]


def test_a_miner_that_is_refused_ends_last_and_one_cut_off_is_not_blamed() -> None:
    rounds = joined(noisy_rounds(HONEST, 25), [refused("mallory"), failed("cut")])
    history = fold(rounds)
    lines = {line.hotkey: line for line in ranks(history.table)}
    assert order(rounds)[-2:] == ["cut", "mallory"]
    assert lines["mallory"].refusals == 25
    assert lines["mallory"].weight == lines["cut"].weight == 0.0
    assert (lines["cut"].rating, lines["cut"].reliability, lines["cut"].refusals) == (25.0, 1.0, 0)
    entry = history.entries[0][1]["mallory"]
    assert (entry.verdict, entry.ranking.place, entry.ranking.compared) == ("fault", 6, 6)
    assert entry.after.mu < entry.ranking.rating_before


def test_partial_participation_changes_only_the_miners_that_took_part() -> None:
    draw = np.random.default_rng(5)
    rounds = []
    for number in range(1, 61):
        g = draw.normal(size=60)
        asked = sorted(draw.choice(list(HONEST), 3, replace=False))
        rounds.append(round_of(number, {n: g + draw.normal(size=60) * 4 / HONEST[n] for n in asked}, g))
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
        hostile = {"replay": last, "noisy": last + 0.3 * draw.normal(size=d), "flip": -g, "nothing": 0.0 * g}
        rounds.append(round_of(number, {**honest, **hostile}, g, [(AGGREGATE, last)]))
        last = np.mean(list(honest.values()), axis=0)
    assert set(order(rounds)[:6]) == {f"h{i}" for i in range(6)}


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
        alone.append(round_of(number, {**honest, "s0": one}, g))
        first = draw.integers(k) if turns else 0
        many.append(
            round_of(
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


def test_a_contribution_without_inner_products_is_not_rated() -> None:
    """The inner product of one contribution was not finite: it was left out of the evidence."""
    rounds = noisy_rounds(HONEST, 10)
    broken = []
    for each in rounds:
        p = each.evidence.products
        assert p is not None
        keep = [i for i, name in enumerate(p.miners) if name != "a"]
        less = with_products(
            each,
            miners=tuple(p.miners[i] for i in keep),
            gradient=tuple(p.gradient[i] for i in keep),
            contributions_baseline=tuple(p.contributions_baseline[i] for i in keep),
        )
        broken.append(less)
    lines = {line.hotkey: line for line in ranks(fold(broken).table)}
    assert (lines["a"].rating, lines["a"].sigma) == (25.0, 25 / 3)
    assert lines["a"].weight == 0.0
    assert lines["a"].rank == 5 or lines["a"].score <= min(line.score for line in lines.values())


def test_a_common_failure_changes_no_rating() -> None:
    rounds = noisy_rounds(HONEST, 10)
    table = fold(rounds).table
    bad = round_record(11, [refused(name, "late") for name in HONEST], applied=False, reason="too_few")
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
    assert {entry.verdict for entry in entries.values()} == {"excused"}


def test_the_record_holds_what_the_round_did_to_each_miner() -> None:
    rounds = joined(noisy_rounds(HONEST, 6), [refused("mallory")])
    table = Table()
    for record in rounds:
        before = table
        table, entries = advance(table, record)
        ranked = with_ranking(record, table, entries)
    lines = {line.hotkey: line for line in ranks(table)}
    assert decode_record(encode_record(ranked)) == ranked
    for miner in ranked.miners:
        line = lines[miner.hotkey]
        assert (miner.rank, miner.rating, miner.sigma, miner.pay) == (line.rank, line.rating, line.sigma, line.weight)
        assert miner.verdict == ("fault" if miner.hotkey == "mallory" else "own")
        assert miner.ranking is not None
        assert miner.ranking.rating_before == before.standings[miner.hotkey].rating.mu
    assert advance(before, ranked) == (table, entries)  # a ranked record ranks as one that is not


def test_a_round_without_measurement_changes_no_rating() -> None:
    rounds = noisy_rounds(HONEST, 6)
    table = fold(rounds[:5]).table
    after, entries = advance(table, with_evidence(rounds[5], products=None))
    assert {entry.score for entry in entries.values()} == {None}
    assert {h: s.rating for h, s in after.standings.items()} == {h: s.rating for h, s in table.standings.items()}
    assert {entry.ranking.compared for entry in entries.values()} == {0}


def test_no_rounds_make_an_empty_table() -> None:
    assert ranks(fold([]).table) == []
    assert fold([]).table.standings == Table().standings
