"""Record what byzfl's rules make of some rows, for tests to compare ours with; the suite then needs no byzfl.

    pip install --no-deps byzfl==0.0.11        (never with its dependencies: they replace torch and take 6 GB)
    PYTHONPATH=src python scripts/record_byzfl.py tests/golden/byzfl.json

Of byzfl only what is right is recorded: finite rows, its geometric median iterated until it stands still. Its
bucketing draws at random and its centred clipping starts at zero, so neither has a counterpart here.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from fedgpt2.aggregation.registry import RULES
from fedgpt2.cli.bench.byzfl_rules import VERSION, byzfl_rules

CASES = ((4, 1), (5, 0), (5, 1), (7, 2), (10, 3), (13, 3), (13, 4))  # n, f
D = 6


def case(n: int, f: int) -> dict[str, object]:
    """Rows, f, and the aggregate of each rule."""
    rng = np.random.default_rng(100 * n + f)
    rows = torch.from_numpy((rng.standard_normal((n, D)) * rng.uniform(0.5, 2.0, (n, 1)) + 0.5).astype(np.float32))
    clip = float(np.median(np.linalg.norm(rows.double().numpy(), axis=1)))
    rules = byzfl_rules(f, clip, smoothing=1e-7, iterations=20_000)
    expected = {name: rules[name](rows.clone()).tolist() for name in RULES.names if name in rules}
    return {"f": f, "rows": rows.tolist(), "expected": expected}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="the .json to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case(n, f) for n, f in CASES]
    args.output.write_text(json.dumps({"byzfl": VERSION, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
