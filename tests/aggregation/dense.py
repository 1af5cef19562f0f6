"""The rules as their papers state them, on whole [n, d] matrices in float64: what the room's results must equal.

Plain on purpose: no Gram matrix, no blocks, no scaling, no clusters. `PIPELINES` has the names of the room's.
"""

from collections.abc import Callable

import numpy as np

Matrix = np.ndarray  # [n, d] float64
Rule = Callable[[Matrix, int], np.ndarray]
Stage = Callable[[Matrix, int, int], Matrix]


def distances(x: Matrix) -> np.ndarray:
    return np.linalg.norm(x[:, None, :] - x[None, :, :], axis=2)


def norm_clip(x: Matrix, f: int, seed: int) -> Matrix:
    norms = np.linalg.norm(x, axis=1)
    return _clip(x, norms, np.median(norms))


def arc(x: Matrix, f: int, seed: int) -> Matrix:
    n = len(x)
    k = min(n - 1, int(np.floor(2 * f * (n - f) / n)))
    norms = np.linalg.norm(x, axis=1)
    return _clip(x, norms, np.sort(norms)[n - k - 1])


def _clip(x: Matrix, norms: np.ndarray, longest: float) -> Matrix:
    return np.stack(
        [row if length <= longest else row * (longest / length) for row, length in zip(x, norms, strict=True)]
    )


def nnm(x: Matrix, f: int, seed: int) -> Matrix:
    return np.stack([x[np.argsort(row, kind="stable")[: max(1, len(x) - f)]].mean(0) for row in distances(x)])


def bucketing(x: Matrix, f: int, seed: int) -> Matrix:
    size = 2 if -(-len(x) // 2) > 2 * f else 1
    order = np.random.default_rng(seed).permutation(len(x))
    return np.stack([x[order[i : i + size]].mean(0) for i in range(0, len(x), size)])


def mean(x: Matrix, f: int) -> np.ndarray:
    return x.mean(0)


def median(x: Matrix, f: int) -> np.ndarray:
    return np.median(x, axis=0)


def trimmed_mean(x: Matrix, f: int) -> np.ndarray:
    trim = min(f, (len(x) - 1) // 2)
    return np.sort(x, axis=0)[trim : len(x) - trim].mean(0)


def krum_scores(x: Matrix, f: int) -> np.ndarray:
    return (np.sort(distances(x), axis=1)[:, 1 : max(2, len(x) - f)] ** 2).sum(1)


def krum(x: Matrix, f: int) -> np.ndarray:
    scores = krum_scores(x, f)
    return x[scores <= scores.min() * (1 + 1e-12)].mean(0)


def multi_krum(x: Matrix, f: int) -> np.ndarray:
    return x[np.argsort(krum_scores(x, f), kind="stable")[: max(1, len(x) - f)]].mean(0)


def geometric_median(x: Matrix, f: int) -> np.ndarray:
    """Weiszfeld until nothing moves."""
    y = np.median(x, axis=0)
    smallest = 1e-9 * np.median(np.linalg.norm(x - y, axis=1)) + 1e-300
    for _ in range(5000):
        inverse = smallest / np.maximum(np.linalg.norm(x - y, axis=1), smallest)
        y, before = (inverse @ x) / inverse.sum(), y
        if np.abs(y - before).max() <= 1e-14 * np.abs(x).max():
            break
    return y


def centered_clipping(x: Matrix, f: int) -> np.ndarray:
    away = distances(x)
    reach = np.median(away, axis=1)
    halves = [np.argsort(away[i], kind="stable")[: len(x) // 2 + 1] for i in np.flatnonzero(reach <= reach.min())]
    v = np.mean([x[half].mean(0) for half in halves], axis=0)
    for _ in range(5):
        lengths = np.linalg.norm(x - v, axis=1)
        tau = np.median(lengths)
        shares = np.where(lengths > tau, tau / np.maximum(lengths, 1e-300), 1.0)
        v = v + (shares[:, None] * (x - v)).mean(0)
    return v


PIPELINES: dict[str, tuple[tuple[Stage, ...], Rule]] = {
    "default": ((norm_clip, nnm), geometric_median),
    "clipped_mean": ((norm_clip,), mean),
    "median": ((), median),
    "trimmed_mean": ((), trimmed_mean),
    "krum": ((), krum),
    "multi_krum": ((), multi_krum),
    "geometric_median": ((), geometric_median),
    "centered_clipping": ((), centered_clipping),
    "nnm_trimmed_mean": ((nnm,), trimmed_mean),
    "nnm_median": ((nnm,), median),
    "arc_nnm_trimmed_mean": ((arc, nnm), trimmed_mean),
    "bucketing_geometric_median": ((bucketing,), geometric_median),
}


def staged(name: str, x: Matrix, f: int, seed: int = 0) -> Matrix:
    """What the rule of pipeline `name` is given, [m, d]."""
    for stage in PIPELINES[name][0]:
        x = stage(x, f, seed)
    return x


def aggregate(name: str, x: Matrix, f: int, seed: int = 0) -> np.ndarray:
    """The aggregate of pipeline `name` of the rows of x, [d]."""
    return PIPELINES[name][1](staged(name, x, f, seed), f)
