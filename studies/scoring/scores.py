"""Scores of contributions, computed from recorded inner products.

A score is linear in the contribution up to its length, so a contribution is given by its coefficients over the recorded
rows. With P the projection onto the baseline vectors (a basis of what costs no work), x' = x - P x and g the scoring
gradient:

    raw       <g, x> / |x|            whole     <g, x'> / |x|           own       <g, x'> / |x'|
    positive  (<g, x> - max(0, <g, P x>)) / |x|                         novelty   raw |x'|² / |x|²
    others    `own` with the mean of the other contributions of the round in the basis (leave-one-out)
    round     `own` with this round's aggregate in the basis (the residual to the robust mean)
    crowd     `own` with g + the mean of the other gradients (scaled to |g|) in place of g
    proven    (`Score.raw` raw + (1 - `Score.raw`) own) times a contribution share. The share is 0 up to LEAST of the
              median of N and 1 from `full` of it on; N is the running mean of `own`, each round clipped to BOUND.
              A raw score below 0 and below `own` replaces `own`. `proven whole` uses `whole` in place of `own`.

<g - P g, x> = <g, x - P x>: projecting the scoring gradient gives the same score. Subtracting one vector from all
contributions changes no place in a round.

Letters: r rounds, n rows, m contributions, k baseline vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["BASES", "Evidence", "Score", "compared", "measured", "scores"]

Float64 = NDArray[np.float64]

FLOOR = 1e-3  # of |g|: a median of N below it counts as this
LEAST = 3 / 8  # of the median of N: the share is 0 up to here
BOUND, LEAST_BOUND = 2.0, 0.05  # one round counts for at most 2 medians of N, or 0.05 |g| if that is more

_AGGREGATES = tuple(f"agg/{k}" for k in range(1, 9))
BASES: Mapping[str, tuple[str, ...]] = {
    "": (),
    **{f"A{k}": _AGGREGATES[:k] for k in (1, 2, 4, 8)},
    "M": ("moment",),
    **{f"M+A{k}": ("moment", *_AGGREGATES[:k]) for k in (1, 2, 4, 8)},
    "E": ("ema/0.5", "ema/0.9", "ema/0.99"),
    "U1": ("step/1",),
    "U4": tuple(f"step/{k}" for k in range(1, 5)),
    "U4+A4": (*(f"step/{k}" for k in range(1, 5)), *_AGGREGATES[:4]),
    "G": ("past",),
}
_SPANNED = 1e-5  # a baseline vector with less of its squared length outside the others' span adds nothing
_NOTHING = 1e-12
_LEAST = 0.01  # of |x|²: lower bound of |x'|², so that rounding errors of a replay score nothing


@dataclass(frozen=True)
class Score:
    """A scoring rule: kind, basis, scoring tokens and the kind's parameters."""

    kind: str = "raw"
    basis: str = ""
    tokens: int = 2048
    blend: float = 0.0  # weight of raw mixed into `own`
    smooth: int = 0  # rounds over which scores are averaged before the comparison; 0: none
    memory: int = 20  # rounds over which `proven` averages N
    raw: float = 1.0  # weight of raw in `proven`
    full: float = 1.0  # of the median of N: the share is 1 from here on

    @property
    def name(self) -> str:
        """Name in tables."""
        parts = [self.kind, self.basis, f"+ {self.blend:g} raw" * bool(self.blend)]
        parts += [f"mean of {self.smooth}" * bool(self.smooth), f"memory {self.memory}" * (self.memory != 20)]
        parts += [f"{self.raw:.2g} raw" * (self.raw != 1.0), f"full at {self.full:g}" * (self.full != 1.0)]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Evidence:
    """The recorded rounds of one training."""

    name: str
    rows: Mapping[str, int]
    gram: Float64  # [r, n, n]
    present: NDArray[np.int64]  # [r, 6]
    change: Float64  # [r, 6]
    loss: Float64  # [r]

    @property
    def moment(self) -> bool:
        """Whether the optimizer keeps a first moment; SGD does not."""
        return "-sgd-" not in self.name

    @classmethod
    def load(cls, path: Path) -> "Evidence":
        """Read a file of `collect`."""
        with np.load(path) as kept:
            rows = {str(name): i for i, name in enumerate(kept["names"])}
            return cls(path.stem, rows, kept["gram"], kept["present"], kept["change"], kept["loss"])

    def vector(self, parts: Mapping[str, float] | str) -> Float64:
        """Coefficients [n] of one row, or of a sum of rows."""
        made = np.zeros(len(self.rows))
        for name, factor in ({parts: 1.0} if isinstance(parts, str) else parts).items():
            made[self.rows[name]] += factor
        return made

    def lengths(self, vector: Float64) -> Float64:
        """Length in each round, [r]."""
        lengths: Float64 = np.sqrt(np.einsum("i,rij,j->r", vector, self.gram, vector))
        return lengths


@dataclass(frozen=True)
class _Parts:
    gain: Float64  # [r, m] <g, x>
    baseline: Float64  # [r, m] <g, P x>
    square: Float64  # [r, m] |x|²
    rest: Float64  # [r, m] |x'|²

    def score(self, kind: str, blend: float) -> Float64:
        length, own = np.sqrt(self.square), np.sqrt(np.maximum(self.rest, _LEAST * self.square))
        added = self.gain - self.baseline
        if kind == "raw":
            return self.gain / length
        if kind == "whole":
            return added / length
        if kind == "positive":
            return (self.gain - np.maximum(self.baseline, 0.0)) / length
        if kind == "novelty":
            return self.gain / length * self.rest / self.square
        return (1.0 - blend) * added / own + blend * self.gain / length


def measured(evidence: Evidence, contributions: Float64, population: int, score: Score) -> tuple[Float64, Float64]:
    """The score before sharing and, for `proven`, the own effect that N averages: [r, m] each, in units of |g|.

    The first `population` contributions, coefficients [r, m, n] or [m, n], are the round; each further one is scored
    as if it alone had been added.
    """
    x = np.broadcast_to(contributions, (len(evidence.gram), *contributions.shape[-2:]))
    unit = evidence.lengths(evidence.vector(f"score/{score.tokens}"))[:, None]
    kind, _, by = score.kind.partition(" ")
    if kind != "proven":
        plain = _scores(evidence, x, population, score) / unit
        return plain, plain
    raw, own = (_scores(evidence, x, population, replace(score, kind=each)) / unit for each in ("raw", by or "own"))
    own = np.where(raw < 0.0, np.minimum(raw, own), own)
    return score.raw * raw + (1.0 - score.raw) * own, own


def compared(plain: Float64, own: Float64, population: int, score: Score) -> Float64:
    """Final scores [..., r, m] of the two results of `measured`; NaN in both marks an absent miner."""
    if score.kind.startswith("proven"):
        mean = _running(own, 1.0 - 1.0 / score.memory, population)
        middle = np.nanmedian(np.where(np.isfinite(own), mean, np.nan)[..., :population], axis=-1, keepdims=True)
        share = np.clip((mean / np.maximum(middle, FLOOR) - LEAST) / (score.full - LEAST), 0.0, 1.0)
        return np.maximum(plain, 0.0) * share
    if score.smooth:
        middle = np.nanmedian(plain[..., :population], axis=-1, keepdims=True)
        return np.where(np.isfinite(plain), _running(plain - middle, 1.0 - 1.0 / score.smooth), np.nan)
    return plain


def scores(evidence: Evidence, contributions: Float64, population: int, score: Score) -> Float64:
    """Scores [r, m] with every miner present; see `measured`."""
    return compared(*measured(evidence, contributions, population, score), population, score)


def _running(values: Float64, decay: float, population: int = 0) -> Float64:
    """Bias-corrected running means along the rounds of [..., r, m]; absences are left out.

    With a population, each value is clipped to BOUND times the median of the means so far, at least LEAST_BOUND.
    """
    total, weight = np.zeros_like(values[..., 0, :]), np.zeros_like(values[..., 0, :])
    means = []
    for r in range(values.shape[-2]):
        now = values[..., r, :]
        here = np.isfinite(now)
        if population and r:
            known = np.where(here & (weight > 0.0), total / np.maximum(weight, _NOTHING), np.nan)[..., :population]
            some = np.isfinite(known).any(-1, keepdims=True)
            middle = np.nanmedian(np.where(some, known, 0.0), axis=-1, keepdims=True)
            most = np.where(some, np.maximum(BOUND * middle, LEAST_BOUND), 1.0)
            now = np.clip(now, -most, most)
        total = np.where(here, decay * total + (1.0 - decay) * np.nan_to_num(now), total)
        weight = np.where(here, decay * weight + 1.0 - decay, weight)
        means.append(total / np.maximum(weight, _NOTHING))
    return np.stack(means, axis=-2)


def _scores(evidence: Evidence, x: Float64, population: int, score: Score) -> Float64:
    g = evidence.vector(f"score/{score.tokens}")[None, None]
    basis = np.array([evidence.vector(name) for name in BASES[score.basis]]).reshape(1, 1, -1, x.shape[2])
    if score.kind == "others":
        others = _others(evidence, x, population)[:, :, None]
        basis = np.concatenate([np.broadcast_to(basis, (*x.shape[:2], *basis.shape[2:])), others], axis=2)
    if score.kind == "crowd":
        others = _others(evidence, x, population)
        g = g + others * np.sqrt(_products(evidence.gram, g, g) / _products(evidence.gram, others, others))[:, :, None]
    if score.kind == "round":
        basis = np.concatenate([basis, evidence.vector("agg/0")[None, None, None]], axis=2)
    return _parts(evidence.gram, g, x, basis).score(score.kind, score.blend)


def _products(gram: Float64, first: Float64, second: Float64) -> Float64:
    """Inner products [r, m] of vectors [r, m, n], with broadcasting."""
    products: Float64 = ((first @ gram) * second).sum(-1)
    return products


def _others(evidence: Evidence, x: Float64, population: int) -> Float64:
    """Mean direction of the population without the contribution itself, [r, m, n]."""
    directions = x / np.sqrt(_products(evidence.gram, x, x))[:, :, None]
    total = directions[:, :population].sum(1, keepdims=True)
    here = (np.arange(x.shape[1]) < population)[None, :, None]
    others: Float64 = np.where(here, (total - directions) / (population - 1), total / population)
    return others


def _parts(gram: Float64, g: Float64, x: Float64, basis: Float64) -> _Parts:
    """Inner products of g and x [r, m, n] with each other and with the baseline vectors [r, m, k, n]."""
    gain, square = _products(gram, x, g), _products(gram, x, x)
    if not basis.shape[2]:
        return _Parts(gain, np.zeros_like(gain), square, square)
    side = basis @ gram[:, None]
    inner = side @ basis.swapaxes(2, 3)
    scale = 1.0 / np.sqrt(np.maximum(np.einsum("rmkk->rmk", inner), 1e-30))
    inverse = np.linalg.pinv(inner * scale[..., :, None] * scale[..., None, :], rcond=_SPANNED, hermitian=True)
    on_x = (side @ x[..., None])[..., 0] * scale
    on_g = (side @ g[..., None])[..., 0] * scale
    spanned = ((inverse @ on_x[..., None])[..., 0] * on_x).sum(-1)
    return _Parts(gain, ((inverse @ on_g[..., None])[..., 0] * on_x).sum(-1), square, square - spanned)
