"""Stages and rules on examples worked by hand from their papers' definitions: tests/golden/aggregation.json."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgpt2.aggregation import coordinatewise, rules, stages
from fedgpt2.aggregation.gram import gram, norm

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "aggregation.json").read_text())


def span_of(rows: list[list[float]]):
    vectors = list(torch.tensor(rows, dtype=torch.float32))
    return gram(vectors, [norm(row) for row in vectors])


@pytest.mark.parametrize("case", GOLDEN["stages"], ids=lambda case: f"{case['stage']}: {case['why']}")
def test_a_stage(case):
    stage = getattr(stages, case["stage"])()
    span = stage(span_of(case["rows"]), case["f"], 0)
    vectors = span.mixing @ (span.scales[:, None] * np.array(case["rows"], dtype=float))
    assert np.allclose(vectors, case["vectors"], atol=1e-6)
    assert np.allclose(span.norms(), np.linalg.norm(case["vectors"], axis=1), atol=1e-3)


@pytest.mark.parametrize("case", GOLDEN["rules"], ids=lambda case: f"{case['rule']}: {case['why']}")
def test_a_rule(case):
    if hasattr(coordinatewise, case["rule"]):
        rule = getattr(coordinatewise, case["rule"])()
        aggregate = rule.reduce(torch.tensor(case["rows"], dtype=torch.float32), case["f"]).numpy()
    else:
        weights = getattr(rules, case["rule"])().weights(span_of(case["rows"]), case["f"])
        aggregate = weights @ np.array(case["rows"])
        assert weights.sum() == pytest.approx(1)
    assert np.allclose(aggregate, case["aggregate"], atol=1e-5)


def test_every_stage_and_rule_has_an_example():
    assert {case["stage"] for case in GOLDEN["stages"]} == {"NormClip", "ARC", "NNM", "Bucketing"}
    named = {case["rule"] for case in GOLDEN["rules"]}
    assert named == (set(rules.__all__) | set(coordinatewise.__all__)) - {
        "SpanRule",
        "CoordinatewiseRule",
        "PlainFunction",
        "network",
    }
