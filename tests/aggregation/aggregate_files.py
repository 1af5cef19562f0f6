"""Aggregate rows mapped from files, and say what memory it took: NAME FOLDER N D."""

import json
import resource
import sys

import numpy as np
import torch

from fedgpt2.aggregation.registry import RULES


def main(name: str, folder: str, n: int, d: int) -> None:
    torch.set_num_threads(1)
    small = list(torch.randn(4, 1 << 17))
    RULES[name](small, None, 1, torch.empty(1 << 17))  # what libraries allocate once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = [torch.from_numpy(np.memmap(f"{folder}/{i}.bin", np.float32, "c", shape=(d,))) for i in range(n)]
    out = torch.empty(d)
    RULES[name](rows, None, n // 4, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    sys.stdout.write(json.dumps({"peak_bytes": 1024 * peak, "norm": float(out.norm())}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
