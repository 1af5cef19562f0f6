"""From admitted contributions to new weights: by which rule, through which gate, and why not."""

from dataclasses import replace

import msgspec
import pytest
import torch

from fedgpt2.aggregation.combine import RULES, check_rule, quorum, terms
from fedgpt2.errors import UsageError
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.validator.step import SkipReason
from fedgpt2.validator.training import Training

from .conftest import FP32, MINERS, answer, gone, nan, run_row, with_settings


def good(value=1e-3):
    return lambda issued: answer(issued, value)


def named(issued, result):
    """The result with the digest that its body now has."""
    digest = blob_digest(FP32.header(issued.order.model.schema()), result.received.data)
    blob = msgspec.structs.replace(result.received.contribution.blob, digest=digest)
    contribution = msgspec.structs.replace(result.received.contribution, blob=blob)
    return replace(result, received=replace(result.received, contribution=contribution))


def noisy(seed, scale=1e-3):
    """Its own gradient, which no other resembles."""

    def behave(issued):
        result = answer(issued, 0.0)
        values = torch.frombuffer(result.received.data, dtype=torch.float32)
        values.normal_(generator=torch.Generator().manual_seed(seed)).mul_(scale)
        return named(issued, result)

    return behave


@pytest.mark.parametrize(
    ("asked", "faults", "rule", "f"),
    [
        (1, 0, "clipped_mean", 0),
        (3, 1, "clipped_mean", 0),
        (4, 0, "default", 1),
        (4, 1, "default", 0),
        (12, 1, "default", 2),
    ],
)
def test_the_default_needs_four_miners_and_counts_those_caught(asked, faults, rule, f):
    assert (terms("default", asked, faults).rule, terms("default", asked, faults).f) == (rule, f)


def test_the_mean_trusts_everybody_and_the_others_do_not():
    assert terms("mean", 12, 0).f == 0
    assert all(terms(rule, 12, 0).f == 3 for rule in RULES.names if rule != "mean")


@pytest.mark.parametrize(
    ("rule", "asked", "share", "wanted"),
    [
        ("default", 12, 0.75, 10),
        ("default", 12, 1.0, 12),
        ("default", 3, 0.5, 2),
        ("mean", 12, 0.75, 9),
        ("krum", 4, 0.0, 4),
        ("mean", 25, 0.28, 7),  # 7.000000000000001 by floats
        ("mean", 3, 0.34, 2),
    ],
)
def test_a_quorum_is_never_too_few_for_the_rule(rule, asked, share, wanted):
    assert quorum(rule, asked, share) == wanted
    assert terms(rule, asked, 0, 0, asked - wanted).met_by(wanted)


def test_an_unknown_rule_is_named_with_those_there_are():
    with pytest.raises(UsageError, match=r"--aggregation.rule averages: no such rule; one of mean, default, "):
        check_rule("averages")


async def test_by_default_four_miners_have_the_robust_rule(running, config):
    behaviours = {hotkey: noisy(i) for i, hotkey in enumerate(MINERS[:4])}
    with running(with_settings(config, aggregation={"rule": "default"}), behaviours) as run:
        row = await run_row(run, 1, 0)
    assert (row["rule"], row["f"], row["applied"]) == ("default", 1, True)
    assert sum(miner["weight"] for miner in row["miners"]) == pytest.approx(1.0, rel=0.05)
    assert [miner["cluster"] for miner in row["miners"]] == [0, 1, 2, 3]


async def test_with_one_of_four_missing_too_few_are_left_unless_it_was_its_own_fault(running, config):
    config = with_settings(config, aggregation={"rule": "default"})
    rows = []
    for missing in (gone, nan):
        behaviours = {**{hotkey: noisy(i) for i, hotkey in enumerate(MINERS[:4])}, MINERS[1]: missing}
        with running(with_settings(config, run={"dir": f"{config.run.dir}-{missing.__name__}"}), behaviours) as run:
            rows.append(await run_row(run, 1, 0))
    assert [(row["f"], row["applied"], row["reason"]) for row in rows] == [
        (1, False, SkipReason.TOO_FEW),
        (0, True, None),
    ]
    assert rows[0]["model"] == rows[0]["parent"]


async def test_one_gradient_under_two_hotkeys_is_one_cluster_with_one_vote(running, config):
    behaviours = {hotkey: noisy(i) for i, hotkey in enumerate(MINERS[:4])}

    def copied(issued):
        result = noisy(0)(issued)
        torch.frombuffer(result.received.data, dtype=torch.float32)[0] += 1e-5  # so that the bodies differ
        return named(issued, result)

    behaviours[MINERS[3]] = copied
    with running(with_settings(config, aggregation={"rule": "default"}), behaviours) as run:
        miners = (await run_row(run, 1, 0))["miners"]
    assert [miner["cluster"] for miner in miners] == [0, 1, 2, 0]
    assert miners[0]["weight"] == pytest.approx(miners[3]["weight"], rel=1e-3)
    assert miners[0]["weight"] + miners[3]["weight"] <= 0.501  # three votes, of which each mixes with its nearest


async def test_by_default_fewer_than_four_have_the_clipped_mean(running, config):
    behaviours = {MINERS[0]: noisy(0, 1e-3), MINERS[1]: noisy(1, 1e-3), MINERS[2]: noisy(2, 1.0)}
    with running(with_settings(config, aggregation={"rule": "default"}), behaviours) as run:
        row = await run_row(run, 1, 0)
    assert (row["rule"], row["f"], row["applied"]) == ("clipped_mean", 0, True)
    weights = [miner["weight"] for miner in row["miners"]]
    assert weights[:2] == pytest.approx([1 / 3, 1 / 3], rel=0.01)
    assert weights[2] == pytest.approx(1 / 3000, rel=0.01)
    assert row["norm"] < 1.0  # the long one is no longer than the others


@pytest.fixture
def measured(monkeypatch):
    """`measured(before, *after)`: what the losses of the round are, instead of measuring them."""

    def stub(before, *after):
        trials = iter(after)
        monkeypatch.setattr(Training, "loss", lambda *_: before)
        monkeypatch.setattr(Training, "trial", lambda *_: next(trials))

    return stub


@pytest.mark.parametrize(
    ("after", "share", "reason", "applied"),
    [
        ((9.0,), 1.0, None, True),
        ((10.04,), 1.0, None, True),
        ((10.2, 10.01), 0.5, "halved", True),
        ((10.2, 10.06, 10.06, 10.05), 0.125, "halved", True),
        ((10.2, 10.06, 10.06, 10.06), 0.0, "loss_gate", False),
        ((float("nan"), float("inf"), 99.0, float("nan")), 0.0, "loss_gate", False),
    ],
)
async def test_the_gate_lets_pass_what_does_no_harm(running, config, measured, after, share, reason, applied):
    measured(10.0, *after)
    config = with_settings(config, aggregation={"gate": True, "tolerance": 0.05}, optimizer={"warmup": 0})
    with running(config, {MINERS[0]: good()}) as run:
        row = await run_row(run, 1, 0)
        moved = run.training.optimizer.steps
    assert (row["applied"], row["reason"], moved) == (applied, reason, int(applied))
    assert row["lr"] == pytest.approx(share * config.optimizer.lr)
    assert (row["gate"]["before"], row["gate"]["share"]) == (10.0, share)
    assert row["gate"]["after"] == (after[-1] if after[-1] < 99 else None)  # nan is not less
    assert (row["model"] == row["parent"]) == (not applied)
    assert [miner["weight"] for miner in row["miners"]] == [1.0 if applied else 0.0]


async def test_what_the_gate_measures_is_what_the_step_leads_to(running, config):
    config = with_settings(config, aggregation={"gate": True, "tolerance": 1e9}, optimizer={"warmup": 0, "lr": 0.01})
    with running(config, {MINERS[0]: noisy(3)}) as run:
        row = await run_row(run, 1, 0)
        digests = [miner["digest"] for miner in row["miners"]]
        windows = run.corpus.score(run.key, 1, digests, config.run.score_windows)
        assert run.training.loss(windows) == row["gate"]["after"] != row["gate"]["before"] == row["train_loss"]


async def test_a_step_that_ruins_the_model_is_not_taken(running, config):
    config = with_settings(config, aggregation={"gate": True}, optimizer={"warmup": 0, "lr": 10.0})
    with running(config, {MINERS[0]: noisy(3)}) as run:
        before = {key: tensor.clone() for key, tensor in run.training.optimizer.tensors().items()}
        row = await run_row(run, 1, 0)
        after = run.training.optimizer.tensors()
    assert (row["applied"], row["reason"]) == (False, "loss_gate")
    assert all(torch.equal(before[key], after[key]) for key in before)
