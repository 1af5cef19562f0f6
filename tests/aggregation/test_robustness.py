"""Robustness as a number that must not get worse: kappa and cosine of every rule under every attack.

Rewritten only with FEDGPT2_WRITE_GOLDEN=1; docs/aggregation.md shows the worst of it.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from fedgpt2.aggregation.registry import RULES
from tests.aggregation import arena

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "robustness.json"


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, dict[str, float]]]:
    values = {rule: {attack: arena.measure(rule, attack) for attack in arena.ATTACKS} for rule in RULES.names}
    if os.environ.get("FEDGPT2_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
    return values


@pytest.mark.parametrize("rule", RULES.names)
def test_no_rule_is_less_robust_than_recorded(measured, rule):
    recorded = json.loads(GOLDEN.read_text())[rule]
    assert set(recorded) == set(arena.ATTACKS)
    for attack, before in recorded.items():
        now = measured[rule][attack]
        assert now["kappa"] == pytest.approx(before["kappa"], rel=0.02, abs=0.003), attack
        assert now["cosine"] == pytest.approx(before["cosine"], abs=0.01), attack


def test_the_default_holds_its_direction_under_every_attack(measured):
    assert all(cell["kappa"] < 0.15 and cell["cosine"] > 0.5 for cell in measured["default"].values())


def test_a_mean_does_not(measured):
    """The attacks are attacks: what stops them is the rule."""
    assert measured["mean"]["none"]["cosine"] > 0.7
    assert measured["mean"]["ipm 100"]["cosine"] < 0
    assert measured["mean"]["huge"]["kappa"] > 1e50
    assert measured["krum"]["sign_flip"]["cosine"] < 0


def test_copies_gain_nothing_by_their_number(measured):
    for attack in ("sign_flip", "mimic"):
        assert measured["default"][f"{attack}, copies"]["kappa"] < measured["default"][attack]["kappa"]


@pytest.mark.parametrize("noise", [0.003, 0.03, 0.3])
@pytest.mark.parametrize("attack", ["sign_flip", "ipm 100", "opt_ipm", "alie 4", "scale 1e6", "zero", "mimic, copies"])
def test_honest_miners_who_agree_are_not_taken_for_copies(monkeypatch, noise, attack):
    monkeypatch.setattr(arena, "NOISE", noise)
    cell = arena.measure("default", attack)
    assert cell["cosine"] > 0.99
    assert cell["kappa"] < 0.2


def test_the_document_shows_what_was_measured():
    text = (ROOT / "docs" / "aggregation.md").read_text()
    assert arena.table(json.loads(GOLDEN.read_text())) in text


def test_kappa_and_cosine_are_those_of_their_definitions(monkeypatch):
    """Two honest gradients, the mean, and a hostile miner that sends zero, by hand."""
    monkeypatch.setattr(arena, "N", 3)
    monkeypatch.setattr(arena, "F", 1)
    cell = arena.measure("mean", "zero")
    honest = arena.gradients(2, torch.Generator().manual_seed(0)).double()
    spread = (honest - honest.mean(0)).square().sum(1).mean()
    assert cell["kappa"] == pytest.approx(float((honest.mean(0) / 3).square().sum() / spread), rel=1e-3)
    direction = torch.nn.functional.cosine_similarity(honest.sum(0), arena.signal().double(), dim=0)
    assert cell["cosine"] == pytest.approx(float(direction), abs=1e-4)
