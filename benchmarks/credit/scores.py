"""Scores of contributions, from the inner products that `collect` kept.

A score is linear in the contribution but for its length, so a contribution is given by its coefficients over the kept
rows. With P the projection onto what is free, x' = x - P x and g the scoring gradient:

    raw       <g, x> / |x|            whole     <g, x'> / |x|           own       <g, x'> / |x'|
    positive  (<g, x> - max(0, <g, P x>)) / |x|                         novelty   raw |x'|² / |x|²
    others    as `own`, with the mean of the others of the round free as well (leave-one-out)
    round     as `own`, with this round's aggregate free as well (the residual to the robust mean)
    crowd     as `own`, g + the mean of the others' gradients (made as long as g) in place of g
    proven    `Score.raw` of raw and the rest of `own`, times a share that goes from 0 at LEAST of the median of N to 1
              at `full` of it, N the running mean of `own`, no round counting for more than `bound` allows; where raw
              is below 0 and less it stands for `own`; `proven whole` takes `whole` for `own`

<g - P g, x> = <g, x - P x>, so making the scoring gradient orthogonal instead is no other score; nor is the difference
to another vector that is the same for all, for only places in a round count.

Letters: r rounds, n rows, m contributions, k free vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedgpt2.ranking.proven import BOUND, FLOOR, LEAST, UNTOLD

__all__ = ["BASES", "Evidence", "Score", "compared", "marks", "measured"]

Float64 = NDArray[np.float64]

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
_SPANNED = 1e-5  # of a free vector's squared length: with less outside of the others' span it adds nothing
_NOTHING = 1e-12
_LEAST = 0.01  # of |x|²: what counts as |x'|² at least, or a replay's rounding errors would be scored


@dataclass(frozen=True)
class Score:
    """A rule: what is free, on how many tokens the gain is taken, and what becomes of it."""

    kind: str = "raw"
    basis: str = ""
    tokens: int = 2048
    blend: float = 0.0  # share of raw in it
    smooth: int = 0  # rounds over which scores are averaged before they are compared; 0: none
    memory: int = 20  # rounds over which `proven` averages
    raw: float = 1.0  # part of raw in what `proven` compares; the rest is what its N is the mean of
    full: float = 1.0  # of the median of N: from there on the share is whole

    @property
    def name(self) -> str:
        """As tables say it."""
        parts = [self.kind, self.basis, f"+ {self.blend:g} raw" * bool(self.blend)]
        parts += [f"mean of {self.smooth}" * bool(self.smooth), f"memory {self.memory}" * (self.memory != 20)]
        parts += [f"{self.raw:.2g} raw" * (self.raw != 1.0), f"full at {self.full:g}" * (self.full != 1.0)]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Evidence:
    """The kept rounds of one training."""

    name: str
    rows: Mapping[str, int]
    gram: Float64  # [r, n, n]
    present: NDArray[np.int64]  # [r, 6]
    change: Float64  # [r, 6]
    loss: Float64  # [r]

    @property
    def moment(self) -> bool:
        """Whether the optimizer keeps a first moment: SGD does not."""
        return "-sgd-" not in self.name

    @classmethod
    def load(cls, path: Path) -> "Evidence":
        """Read what `collect` wrote."""
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
    free: Float64  # [r, m] <g, P x>
    square: Float64  # [r, m] |x|²
    rest: Float64  # [r, m] |x'|²

    def score(self, kind: str, blend: float) -> Float64:
        length, own = np.sqrt(self.square), np.sqrt(np.maximum(self.rest, _LEAST * self.square))
        added = self.gain - self.free
        if kind == "raw":
            return self.gain / length
        if kind == "whole":
            return added / length
        if kind == "positive":
            return (self.gain - np.maximum(self.free, 0.0)) / length
        if kind == "novelty":
            return self.gain / length * self.rest / self.square
        return (1.0 - blend) * added / own + blend * self.gain / length


def measured(evidence: Evidence, contributions: Float64, population: int, score: Score) -> tuple[Float64, Float64]:
    """What is compared and, for `proven`, the own credit behind it: [r, m] each, as parts of |g|.

    Of contributions with coefficients [r, m, n] (or [m, n]) the first `population` are there; each of the rest is
    looked at as if it alone had come in addition.
    """
    x = np.broadcast_to(contributions, (len(evidence.gram), *contributions.shape[-2:]))
    unit = evidence.lengths(evidence.vector(f"score/{score.tokens}"))[:, None]
    kind, _, by = score.kind.partition(" ")
    if kind != "proven":
        plain = _marks(evidence, x, population, score) / unit
        return plain, plain
    raw, own = (_marks(evidence, x, population, replace(score, kind=each)) / unit for each in ("raw", by or "own"))
    own = np.where(raw < 0.0, np.minimum(raw, own), own)
    return score.raw * raw + (1.0 - score.raw) * own, own


def compared(plain: Float64, own: Float64, population: int, score: Score) -> Float64:
    """Scores [..., r, m] from what `measured` gave; who is absent has NaN in both."""
    if score.kind.startswith("proven"):
        mean = _running(own, 1.0 - 1.0 / score.memory, population)
        middle = np.nanmedian(np.where(np.isfinite(own), mean, np.nan)[..., :population], axis=-1, keepdims=True)
        share = np.clip((mean / np.maximum(middle, FLOOR) - LEAST) / (score.full - LEAST), 0.0, 1.0)
        return np.maximum(plain, 0.0) * share
    if score.smooth:
        middle = np.nanmedian(plain[..., :population], axis=-1, keepdims=True)
        return np.where(np.isfinite(plain), _running(plain - middle, 1.0 - 1.0 / score.smooth), np.nan)
    return plain


def marks(evidence: Evidence, contributions: Float64, population: int, score: Score) -> Float64:
    """Scores [r, m] where everybody is there; see `measured`."""
    return compared(*measured(evidence, contributions, population, score), population, score)


def _running(values: Float64, decay: float, population: int = 0) -> Float64:
    """Running means along the rounds of [..., r, m], without bias at the start; rounds of absence do not count.

    With a population none counts for more than BOUND times the median of the means before it, or than UNTOLD.
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
            most = np.where(some, np.maximum(BOUND * middle, UNTOLD), 1.0)
            now = np.clip(now, -most, most)
        total = np.where(here, decay * total + (1.0 - decay) * np.nan_to_num(now), total)
        weight = np.where(here, decay * weight + 1.0 - decay, weight)
        means.append(total / np.maximum(weight, _NOTHING))
    return np.stack(means, axis=-2)


def _marks(evidence: Evidence, x: Float64, population: int, score: Score) -> Float64:
    g = evidence.vector(f"score/{score.tokens}")[None, None]
    free = np.array([evidence.vector(name) for name in BASES[score.basis]]).reshape(1, 1, -1, x.shape[2])
    if score.kind == "others":
        others = _others(evidence, x, population)[:, :, None]
        free = np.concatenate([np.broadcast_to(free, (*x.shape[:2], *free.shape[2:])), others], axis=2)
    if score.kind == "crowd":
        others = _others(evidence, x, population)
        g = g + others * np.sqrt(_products(evidence.gram, g, g) / _products(evidence.gram, others, others))[:, :, None]
    if score.kind == "round":
        free = np.concatenate([free, evidence.vector("agg/0")[None, None, None]], axis=2)
    return _parts(evidence.gram, g, x, free).score(score.kind, score.blend)


def _products(gram: Float64, first: Float64, second: Float64) -> Float64:
    """Inner products [r, m] of vectors [r, m, n]; either may be one for all."""
    products: Float64 = ((first @ gram) * second).sum(-1)
    return products


def _others(evidence: Evidence, x: Float64, population: int) -> Float64:
    """Mean of the directions of the population without the contribution itself, [r, m, n]."""
    directions = x / np.sqrt(_products(evidence.gram, x, x))[:, :, None]
    total = directions[:, :population].sum(1, keepdims=True)
    here = (np.arange(x.shape[1]) < population)[None, :, None]
    others: Float64 = np.where(here, (total - directions) / (population - 1), total / population)
    return others


def _parts(gram: Float64, g: Float64, x: Float64, free: Float64) -> _Parts:
    """Inner products of g and x [r, m, n] with each other and with what is free [r, m, k, n]."""
    gain, square = _products(gram, x, g), _products(gram, x, x)
    if not free.shape[2]:
        return _Parts(gain, np.zeros_like(gain), square, square)
    side = free @ gram[:, None]
    inner = side @ free.swapaxes(2, 3)
    scale = 1.0 / np.sqrt(np.maximum(np.einsum("rmkk->rmk", inner), 1e-30))
    inverse = np.linalg.pinv(inner * scale[..., :, None] * scale[..., None, :], rcond=_SPANNED, hermitian=True)
    on_x = (side @ x[..., None])[..., 0] * scale
    on_g = (side @ g[..., None])[..., 0] * scale
    spanned = ((inverse @ on_x[..., None])[..., 0] * on_x).sum(-1)
    return _Parts(gain, ((inverse @ on_g[..., None])[..., 0] * on_x).sum(-1), square, square - spanned)
