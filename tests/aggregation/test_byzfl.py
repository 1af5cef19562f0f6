"""Our rules against byzfl's, on what `scripts/record_byzfl.py` recorded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgpt2.aggregation.registry import RULES

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "byzfl.json").read_text())
NAMES = list(GOLDEN["cases"][0]["expected"])


def test_every_rule_both_have_is_compared():
    assert set(NAMES) == {
        *("mean", "default", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median"),
        *("nnm_trimmed_mean", "nnm_median", "arc_nnm_trimmed_mean"),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"n={len(case['rows'])} f={case['f']}")
def test_it_is_what_byzfl_makes_of_the_same_rows(case, name):
    rows = list(torch.tensor(case["rows"]))
    out = torch.empty(len(case["rows"][0]))
    RULES[name](rows, None, case["f"], out)
    assert np.allclose(out.numpy(), case["expected"][name], atol=1e-4)
