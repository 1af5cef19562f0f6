"""A rule, an optimizer and an attack of a test take part in real rounds: registered, or named by import path."""

import textwrap
from pathlib import Path

import pytest
import torch

from fedgpt2.aggregation.pipeline import Pipeline
from fedgpt2.aggregation.registry import RULES
from fedgpt2.aggregation.stages import NormClip
from fedgpt2.errors import SetupError, UsageError
from fedgpt2.optim.registry import OPTIMIZERS
from fedgpt2.simulate.attacks.buffers import seal
from fedgpt2.simulate.attacks.registry import ATTACKS, Entry
from fedgpt2.simulate.program import simulate

ROOT = Path(__file__).parents[2]
SEEN: dict[str, list[int]] = {"rule": [], "optimizer": [], "attack": []}


class NearestZero:
    """A coordinatewise rule: the value nearest to zero."""

    def reduce(self, block, f):
        SEEN["rule"].append(f)
        return block.gather(0, block.abs().argmin(0, keepdim=True))[0]


class HeavyBall:
    """Gradient descent with momentum, written without in-place operations."""

    def __init__(self, settings):
        self.beta = settings.beta1

    def init(self, weights):
        return {"velocity": weights.empty_like()}

    def update(self, gradient, state, weights, lr, steps):
        SEEN["optimizer"].append(steps)
        velocity = self.beta * state["velocity"] + gradient
        return weights - lr * velocity, {"velocity": velocity}


class Halved:
    """An attack: half of an honest gradient."""

    def __call__(self, view):
        SEEN["attack"].append(view.f)
        return [seal(order, view.honest()[i] / 2) for i, order in enumerate(view.orders)]


@pytest.fixture
def registered(monkeypatch):
    """The three, each registered by one line, for one test."""
    for registry in (RULES, OPTIMIZERS, ATTACKS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    for rounds in SEEN.values():
        rounds.clear()
    RULES.register("nearest_zero", Pipeline((NormClip(),), NearestZero()))
    OPTIMIZERS.register("heavy_ball", HeavyBall)
    ATTACKS.register("halved", Entry(Halved, "half of an honest gradient"))


def test_what_a_test_registers_takes_part_in_a_round(small, registered):
    config = small(
        miners=5,
        byzantine=1,
        attack="halved",
        aggregation={"rule": "nearest_zero"},
        optimizer={"name": "heavy_ball", "lr": 0.5, "warmup": 0},
    )
    result = simulate(config)
    assert [row.applied for row in result.rounds] == [True, True]
    assert result.val_loss[1] < result.val_loss[0]
    assert set(SEEN["rule"]) == {1}
    assert set(SEEN["optimizer"]) == {0, 1}
    assert SEEN["attack"] == [1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": {"rule": "examples.aggregation_rule:aligned_mean"}},
        {"optimizer": {"name": "examples.optimizer:Lion", "lr": 3e-3, "warmup": 0}},
        {"attack": "examples.attack:against_the_largest", "byzantine": 1},
    ],
    ids=["rule", "optimizer", "attack"],
)
def test_every_example_trains(small, monkeypatch, changes):
    monkeypatch.chdir(ROOT)
    result = simulate(small(miners=4, rounds=3, **changes))
    assert [row.applied for row in result.rounds] == [True] * 3
    assert result.val_loss[-1] < result.val_loss[0]


def test_the_document_shows_every_example():
    text = (ROOT / "docs" / "simulation.md").read_text()
    for name in ("aggregation_rule", "optimizer", "attack"):
        source = (ROOT / "examples" / f"{name}.py").read_text()
        body = source[source.index("\n\n\n") + 3 :].rstrip()
        assert textwrap.indent(body, "    ") in text, name


def test_an_example_attack_is_admitted_and_has_a_vote(small, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = simulate(small(miners=4, byzantine=1, rounds=1, attack="examples.attack:against_the_largest"))
    (hostile,) = [account for account in result.board.miners.values() if account.hotkey in _hostile(result)]
    assert dict(hostile.statuses) == {"admitted": 1}


def _hostile(result):
    return {miner.hotkey for miner in result.miners if miner.hostile}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack": "no_such_module_here:f", "byzantine": 1}, "--attack no_such_module_here:f: ModuleNotFoundError"),
        ({"aggregation": {"rule": "no_such_module_here:f"}}, r"--aggregation\.rule no_such_module_here:f: ModuleNotF"),
        ({"optimizer": {"name": "no_such_module_here:F"}}, r"--optimizer\.name no_such_module_here:F: ModuleNotFound"),
    ],
)
def test_a_path_that_does_not_load_is_one_line(small, changes, said):
    with pytest.raises(UsageError, match=said):
        simulate(small(**changes))


def test_an_optimizer_that_fails_ends_the_run_with_one_line(small):
    with pytest.raises(SetupError, match=r"--optimizer\.name tests\.simulate\.test_seams:Broken: ValueError: no"):
        simulate(small(optimizer={"name": "tests.simulate.test_seams:Broken"}))


class Broken(HeavyBall):
    """An optimizer that fails in its first step."""

    def update(self, gradient, state, weights, lr, steps):
        raise ValueError("no\nand more")


def test_bits_do_not_depend_on_how_an_optimizer_is_written(small):
    """The same arithmetic in place and not: `update` may reuse memory or return new tensors."""
    plain = simulate(small(optimizer={"name": "sgd", "lr": 0.1, "warmup": 0}))
    own = simulate(small(optimizer={"name": "tests.simulate.test_seams:PlainDescent", "lr": 0.1, "warmup": 0}))
    assert own.val_loss == pytest.approx(plain.val_loss, abs=1e-6)


class PlainDescent(HeavyBall):
    """Gradient descent that returns new tensors."""

    def update(self, gradient, state, weights, lr, steps):
        return torch.sub(weights, gradient, alpha=lr), dict(state)
