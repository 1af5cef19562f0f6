"""Rules of a user, named by their import path."""

import pytest
import torch

from fedgpt2.aggregation.combine import check_rule, combine, terms
from fedgpt2.aggregation.registry import RULES, pipeline
from fedgpt2.errors import SetupError, UsageError

OWN = "tests.aggregation.own_rules:"
ROWS = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)) + 1.0


def aggregate(rule: str, rows: torch.Tensor = ROWS) -> torch.Tensor:
    out = torch.empty(rows.shape[1])
    norms = [float(row.norm()) for row in rows]
    combine(terms(rule, len(rows), 0), list(rows), norms, [10] * len(rows), out, 0)
    return out


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("mean", ROWS.mean(0)), ("lists", ROWS.mean(0)), ("First", ROWS[0]), ("Largest", ROWS.amax(0))],
)
def test_a_function_or_a_class_is_a_rule(name, wanted):
    torch.testing.assert_close(aggregate(OWN + name), wanted)


def test_a_pipeline_is_a_rule():
    assert torch.equal(aggregate(OWN + "clipped"), aggregate("clipped_mean"))


def test_a_function_sees_near_copies_as_one_row():
    rows = torch.cat([ROWS, ROWS[:1], ROWS[:1]])
    torch.testing.assert_close(aggregate(OWN + "mean", rows), ROWS.mean(0))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_shape", "ValueError: returned shape (8, 30) for rows of shape (8, 30)"),
        ("raises", "ValueError: no"),
        ("exits", "SystemExit: 3"),
        ("no_tensor", "AttributeError: 'NoneType' object has no attribute 'shape'"),
    ],
)
def test_a_rule_that_fails_ends_the_run_with_one_line(name, said):
    with pytest.raises(SetupError) as caught:
        aggregate(OWN + name)
    assert str(caught.value) == f"--aggregation.rule {OWN}{name}: {said}"


def test_what_is_no_rule_is_bad_usage():
    with pytest.raises(UsageError, match="own_rules:NUMBER: TypeError: expected a Pipeline, a rule, or a function"):
        check_rule(OWN + "NUMBER")
    with pytest.raises(
        UsageError, match=r"--aggregation\.rule krumm: no such rule; one of mean, default, clipped_mean"
    ):
        check_rule("krumm")
    with pytest.raises(UsageError, match=r"--aggregation\.rule mean: not a pipeline"):
        pipeline("mean")
    assert pipeline("default") is RULES["default"]
