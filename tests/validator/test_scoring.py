"""Trials of a round: on which windows, and that a rule which compares nothing else has some."""

import pytest
from fedgpt2.ranking.evidence import read_evidence
from fedgpt2.validator.rank import check_ranking

from fedgpt2.config import Ranking
from fedgpt2.data.pools import Pick
from fedgpt2.errors import UsageError

from .conftest import MINERS, answer, run_row, with_settings


def working(ticket):
    return answer(ticket, 1e-3)


@pytest.mark.parametrize(
    ("tokens", "trial", "windows"),
    [(256, 64, 1), (256, 65, 2), (256, 192, 3), (128, 4096, 2)],  # of 64 tokens; the gate looks at two
)
async def test_a_trial_looks_at_the_first_of_the_scoring_windows(running, config, tokens, trial, windows):
    wanted = with_settings(config, ranking={"tokens": tokens, "trial": trial})
    with running(wanted, {MINERS[0]: working}) as run:
        score = run.corpus.score_tokens
        evidence = read_evidence((await run_row(run, 1, 0))["evidence"])
        picks = [Pick(*place) for place in evidence.picks]
    assert len(picks) == tokens // 64
    with running(with_settings(wanted, run={"dir": f"{config.run.dir}-anew"}), {}) as fresh:
        before = fresh.training.loss(score(picks[:windows]))
    (made,) = evidence.trials
    assert made.hotkey == MINERS[0]
    assert made.before == pytest.approx(before, abs=1e-6)
    assert made.after == pytest.approx(made.before, abs=1e-4)  # on the same ones: a step of warm-up is short


async def test_without_tokens_for_them_there_are_no_trials_and_audits_all_the_same(running, config):
    with running(with_settings(config, ranking={"trial": 0}), {MINERS[0]: working}) as run:
        evidence = read_evidence((await run_row(run, 1, 0))["evidence"])
    assert evidence.trials == ()
    assert [audit.hotkey for audit in evidence.audits] == [MINERS[0]]


@pytest.mark.parametrize("missing", ["tokens", "sample", "trial"])
def test_a_ranking_by_losses_needs_trials(missing):
    check_ranking(Ranking(score="losses"))
    with pytest.raises(UsageError, match=r"--ranking\.score losses compares trials: .* must not be 0"):
        check_ranking(Ranking(score="losses", **{missing: 0}))
