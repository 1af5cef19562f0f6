"""What a round measures for the ranking: on which windows, on how many tokens, and when nothing."""

import numpy as np
import pytest

from fedgpt2.data.pools import Pick
from fedgpt2.protocol.round_record import Evidence
from fedgpt2.ranking.budget import window_shape
from fedgpt2.validator.scoring import draw_scoring
from fedgpt2.validator.training_loop import run_round

from .conftest import MINERS, answer, with_settings


def working(value):
    return lambda ticket: answer(ticket, value)


THREE = {hotkey: working(value) for hotkey, value in zip(MINERS[:3], (1e-3, 2e-3, -1e-3), strict=True)}


async def measured(running, config, behaviours) -> tuple[Evidence, list[tuple[int, int]]]:
    """Evidence of round 1, and the shape of the windows of its scoring gradient and of each audit."""
    with running(config, behaviours) as ctx:
        shapes, gradient = [], ctx.training.scoring_gradient
        ctx.training.scoring_gradient = lambda windows: shapes.append(windows.shape) or gradient(windows)
        record = await run_round(ctx, 1, 0)
    return record.evidence, shapes


@pytest.mark.parametrize(("tokens", "audits", "gradient"), [(0, 1, 38), (128, 1, 64), (257, 2, 129), (512, 0, 512)])
async def test_gradient_and_audits_stay_within_the_budget(running, config, tokens, audits, gradient):
    wanted = with_settings(config, ranking={"tokens": tokens, "audits": audits})
    evidence, shapes = await measured(running, wanted, THREE)
    count, length = window_shape(gradient, 64)
    assert shapes[0] == (count, length + 1)
    assert len(evidence.picks) == max(2, count)
    assert len(evidence.audits) == audits
    budget = tokens or 3 * 4 * 64 // 10
    assert sum(n * (size - 1) for n, size in shapes) <= budget
    assert len(shapes) == 1 + audits
    assert evidence.products is not None
    assert set(evidence.products.miners) == set(MINERS[:3])


async def test_windows_come_from_the_score_pool_those_of_the_gate_first(running, config):
    with running(with_settings(config, ranking={"tokens": 512, "audits": 0}), THREE) as ctx:
        record = await run_round(ctx, 1, 0)
        digests = [miner.digest for miner in record.miners]
        picks = ctx.corpus.score_picks(ctx.key, 1, digests, 8)
        gate = draw_scoring(ctx, 1, digests).windows
        assert [Pick(*pair) for pair in record.evidence.picks] == list(picks)
        assert np.array_equal(gate, ctx.corpus.score_tokens(picks[:2]))


@pytest.mark.parametrize(("count", "rule"), [(1, "contribution"), (2, "contribution"), (3, "off")])
async def test_few_miners_and_rule_off_are_not_measured(running, config, count, rule):
    wanted = with_settings(config, ranking={"rule": rule})
    with running(wanted, dict(list(THREE.items())[:count])) as ctx:
        record = await run_round(ctx, 1, 0)
    assert (record.evidence.products, record.evidence.audits) == (None, ())
    assert len(record.evidence.picks) == 2  # of the loss gate
    assert [miner.score for miner in record.miners] == [None] * count
    assert [miner.rating for miner in record.miners] == [25.0] * count
    assert {miner.verdict for miner in record.miners} == {"own"}
