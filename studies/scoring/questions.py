"""The questions asked of a score: how well it orders miners of known worth, and what attacks gain under it.

Letters: s simulations, r rounds, m contributions, q seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.attacks import ATTACKS, contributions, effort
from scoring.plackett_luce import Rating, kendall, rate
from scoring.scores import Evidence, Score, compared, measured, scores
from scoring.training import HONEST, PRESENT, graded_names

__all__ = [
    "PADS",
    "Gain",
    "Order",
    "alternating",
    "equals",
    "four_attacks",
    "gain",
    "graded",
    "honest_names",
    "interval",
    "loss_changes",
    "order",
    "padded",
    "patterns",
    "single_round",
    "true_changes",
    "truth",
    "worst",
]

Float64 = NDArray[np.float64]

_PATTERNS = 20  # presence patterns of 6 of 16 miners; the first is that of the measured loss changes
_ROUNDS_OF_ATTACK, _RESAMPLED = 30, 10
PADS: Mapping[str, Mapping[str, float]] = {
    **{
        f"{amount:+g} {name}": {name: amount}
        for name in ("agg/1", "agg/2", "ema/0.5", "step/1")
        for amount in (-0.125, 0.125, 0.25)
    },
    "+0.1 agg/2 - 0.1 agg/1": {"agg/2": 0.1, "agg/1": -0.1},
    "+0.1 agg/1 - 0.1 agg/2": {"agg/1": 0.1, "agg/2": -0.1},
    "+0.1 agg/1 + 0.1 step/1": {"agg/1": 0.1, "step/1": 0.1},
}
_TRUTHS = ("", "_adds", "_realised")  # the whole effect, what a miner adds, the whole effect in this training
_T = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 10: 2.262, 12: 2.201}  # 97.5 %, by seeds


@dataclass(frozen=True)
class Order:
    """Kendall's tau of the final rating with the truth, by seed [q]: all 16 present, or 6 of 16 a round."""

    everybody: Float64
    six: Float64
    everybody_realised: Float64  # the truth is the whole effect in this training
    six_realised: Float64
    fresh: Float64  # all 16 present, tau over the 11 with gradients of this round's weights
    adds: Float64  # all 16 present, the truth is what a miner adds
    six_adds: Float64  # 6 of 16 a round, the truth is what a miner adds


@dataclass(frozen=True)
class Gain:
    """Gain of each attack under one score: means over rounds and seeds."""

    relative: Float64  # mean score over the honest median's mean
    beats: Float64  # share of rounds in which it beats every honest miner
    above_worst: Float64  # probability of a rating above the lowest honest miner's after 30 rounds
    above_half: Float64  # probability of a rating above half of the honest miners'


def interval(values: Float64) -> tuple[float, float]:
    """Mean and lower end of its 95 % confidence interval over seeds."""
    half = _T[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(np.mean(values)) - half


def graded(evidence: Evidence) -> Float64:
    """Coefficients [16, n] of the graded miners."""
    return np.array([evidence.vector(name) for name in graded_names()])


def truth(kept: Sequence[Evidence], score: Score) -> Float64:
    """Worth of each graded miner: its mean score over all rounds of all seeds, [16]."""
    worth: Float64 = np.mean([scores(each, graded(each), len(graded_names()), score).mean(0) for each in kept], axis=0)
    return worth


def realised(evidence: Evidence) -> Float64:
    """Worth in one training, on the 6,144 tokens a round that no score of up to 2,048 tokens uses; [16]."""
    independent = evidence.vector({"score/8192": 8192 / 6144, "score/2048": -2048 / 6144})
    x, unit = graded(evidence), evidence.lengths(independent)
    lengths = np.array([evidence.lengths(vector) for vector in x]).T
    found: Float64 = (x @ evidence.gram @ independent / lengths / unit[:, None]).mean(0)
    return found


def true_changes(kept: Sequence[Evidence]) -> Float64:
    """Worth from measured loss changes, each divided by its round's scale; [16]."""
    total, count = np.zeros(len(graded_names())), np.zeros(len(graded_names()))
    for evidence in kept:
        lengths = evidence.lengths(evidence.vector("score/2048"))
        norms = np.array([evidence.lengths(x) for x in graded(evidence)]).T
        middle = np.median(np.take_along_axis(norms, evidence.present, 1), axis=1)
        np.add.at(total, evidence.present, evidence.change / (lengths * middle)[:, None])
        np.add.at(count, evidence.present, 1)
    return total / count


def order(kept: Sequence[Evidence], score: Score, worth: Float64, adds: Float64, settings: Rating) -> Order:
    """Rank the graded miners by a score; the truths are `worth` (whole effect) and `adds` (what a miner adds)."""
    fresh = np.array([not name.startswith(("late", "half")) for name in graded_names()])
    found: dict[str, list[float]] = {name: [] for name in Order.__dataclass_fields__}
    for evidence in kept:
        plain, own = measured(evidence, graded(evidence), len(graded_names()), score)
        final, here = _final(plain[None], own[None], score, settings), realised(evidence)
        found["everybody"].append(kendall(final, worth)[0])
        found["everybody_realised"].append(kendall(final, here)[0])
        found["adds"].append(kendall(final, adds)[0])
        found["fresh"].append(kendall(final[:, fresh], worth[fresh])[0])
        there = patterns(evidence)
        masked = [np.where(there, values[None], np.nan) for values in (plain, own)]
        final = _final(masked[0], masked[1], score, settings)
        found["six"].append(kendall(final, worth).mean())
        found["six_adds"].append(kendall(final, adds).mean())
        found["six_realised"].append(kendall(final, here).mean())
    return Order(**{name: np.array(values) for name, values in found.items()})


def _final(plain: Float64, own: Float64, score: Score, settings: Rating) -> Float64:
    """Rating [s, m] after the last round of [s, r, m]; a last hostile miner is outside the population."""
    population = len(graded_names()) if plain.shape[-1] == len(graded_names()) else HONEST
    return rate(compared(plain, own, population, score), settings)[0][:, -1]


def equals(kept: Sequence[Evidence], score: Score, settings: Rating) -> tuple[float, float]:
    """Among 12 equal miners after 30 rounds: the number without pay, and the relative deviation of their pay."""
    found = []
    for evidence in kept:
        honest = np.array([evidence.vector(name) for name in honest_names()])
        plain, own = measured(evidence, honest, HONEST, score)
        pay = _pay(compared(plain[None], own[None], HONEST, score), settings)[0]
        found.append((np.sum(pay == 0.0), pay.std() / max(pay.mean(), 1e-12)))
    unpaid, spread = np.mean(found, axis=0)
    return float(unpaid), float(spread)


def _pay(scores: Float64, settings: Rating) -> Float64:
    """Pay [s, n], not normalised, after 30 rounds of scores [s, r, n]."""
    mu, deviation = rate(scores[:, :_ROUNDS_OF_ATTACK], settings)
    pay: Float64 = np.maximum(0.0, mu[:, -1] - 3.0 * deviation[:, -1]) ** 2
    return pay


def padded(kept: Sequence[Evidence], score: Score, settings: Rating) -> dict[str, tuple[float, float]]:
    """Pay of honest work padded with a baseline vector over the pay of the same work unpadded, by padding.

    Means over seeds and their standard errors. One of 12 equal miners pads; every second miner takes its turn.
    """
    gained: dict[str, list[float]] = {name: [] for name in PADS}
    for evidence in kept:
        honest = np.array([evidence.vector(name) for name in honest_names()])
        fair = np.broadcast_to(honest, (len(evidence.gram), *honest.shape))
        mixed = [_mixed(evidence, fair[:, ::2], pad) for pad in PADS.values()]
        plain, own = measured(evidence, np.concatenate([fair, *mixed], axis=1), HONEST, score)
        bare = _pay(compared(plain[None, :, :HONEST], own[None, :, :HONEST], HONEST, score), settings)[0]
        places = np.tile(np.arange(HONEST)[::2], len(PADS))
        pay = _pay(compared(_in_place(plain, places), _in_place(own, places), HONEST, score), settings)
        shares = pay[np.arange(len(places)), places] / np.maximum(pay.mean(1), 1e-12)
        before = max(float(np.mean(bare[::2]) / bare.mean()), 1e-12)
        for name, values in zip(PADS, shares.reshape(len(PADS), -1), strict=True):
            gained[name].append(float(values.mean()) / before)
    return {name: (float(np.mean(v)), float(np.std(v) / max(1, len(v) - 1) ** 0.5)) for name, v in gained.items()}


def _mixed(evidence: Evidence, x: Float64, pad: Mapping[str, float]) -> Float64:
    """Contributions [r, m, n] scaled to length 1, plus amounts of rows scaled to length 1."""
    made = x / np.sqrt(np.einsum("rmi,rij,rmj->rm", x, evidence.gram, x))[:, :, None]
    for name, amount in pad.items():
        free = evidence.vector(name)
        made = made + amount * (free[None] / evidence.lengths(free)[:, None])[:, None]
    return made


def _in_place(values: Float64, places: NDArray[np.int64]) -> Float64:
    """[l, r, 12] of [r, 12 + l]: the honest miners, with the one at `places` [l] replaced by a further column."""
    tables = np.broadcast_to(values[None, :, :HONEST], (len(places), len(values), HONEST)).copy()
    tables[np.arange(len(places)), :, places] = values[:, HONEST:].T
    return tables


def loss_changes(kept: Sequence[Evidence], worth: Float64, adds: Float64, settings: Rating) -> dict[str, Float64]:
    """Tau by seed of Gauntlet's scores: measured loss changes of six sampled miners, rated or averaged (decay 0.9)."""
    found: dict[str, list[float]] = {f"{name}{truth}": [] for name in ("rated", "mean") for truth in _TRUTHS}
    for evidence in kept:
        changes = np.full((1, len(evidence.change), len(graded_names())), np.nan)
        np.put_along_axis(changes[0], evidence.present, evidence.change, 1)
        mean = np.full(changes.shape[2], np.nan)
        for row in changes[0]:
            mean = np.where(np.isnan(row), mean, np.where(np.isnan(mean), row, 0.9 * mean + 0.1 * row))
        for name, final in (("rated", rate(changes, settings)[0][0, -1]), ("mean", np.nan_to_num(mean))):
            for suffix, true in zip(_TRUTHS, (worth, adds, realised(evidence)), strict=True):
                found[f"{name}{suffix}"].append(kendall(final[None], true)[0])
    return {name: np.array(values) for name, values in found.items()}


def single_round(kept: Sequence[Evidence], score: Score, worth: Float64) -> tuple[float, float]:
    """Of a single round: tau with the truth, and how often ⅛ of the work scores below every honest miner."""
    taus, below = [], []
    for evidence in kept:
        made = scores(evidence, graded(evidence), len(graded_names()), score)
        taus.append(kendall(made, worth).mean())
        x = np.array([evidence.vector(name) for name in (*honest_names(), "small/0")])
        made = scores(evidence, x, HONEST, score)
        below.append((made[:, -1] < made[:, :HONEST].min(1)).mean())
    return float(np.mean(taus)), float(np.mean(below))


def gain(kept: Sequence[Evidence], score: Score, settings: Rating) -> Gain:
    """Gain of each of ATTACKS among 12 honest miners of equal work."""
    rng = np.random.default_rng(0)
    found = []
    for evidence in kept:
        honest = np.array([evidence.vector(name) for name in honest_names()])
        x = np.concatenate([np.broadcast_to(honest, (len(evidence.gram), *honest.shape)), contributions(evidence)], 1)
        plain, own = measured(evidence, x, HONEST, score)
        made = compared(plain, own, HONEST, score)
        fair, false = made[:, :HONEST], made[:, HONEST:]
        beats = (false > fair.max(1, keepdims=True)).mean(0)
        standing = _standing(plain, own, score, settings, rng)
        found.append(Gain(false.mean(0) / np.median(fair, 1).mean(), beats, *standing))
    return Gain(*(np.mean([getattr(each, name) for each in found], axis=0) for name in Gain.__dataclass_fields__))


def worst(found: Gain, kind: str, count: int = 3) -> list[tuple[str, float, float, float, float]]:
    """The attacks of an effort that gain most: name, relative, beats, above the worst, above half."""
    names = [*ATTACKS]
    chosen = [i for i, name in enumerate(names) if effort(name) == kind]
    chosen.sort(key=lambda i: (-found.above_worst[i], -found.relative[i]))
    return [
        (
            names[i],
            float(found.relative[i]),
            float(found.beats[i]),
            float(found.above_worst[i]),
            float(found.above_half[i]),
        )
        for i in chosen[:count]
    ]


def honest_names() -> list[str]:
    """Rows of the honest miners of equal work."""
    return [f"full/{i}" for i in range(HONEST)]


def _standing(
    plain: Float64, own: Float64, score: Score, settings: Rating, rng: np.random.Generator
) -> tuple[Float64, Float64]:
    """Probability of each attack to be rated above the worst and above half of the honest miners; bootstrap rounds."""
    above = []
    for _ in range(_RESAMPLED):
        rounds = np.sort(rng.integers(len(plain), size=_ROUNDS_OF_ATTACK))
        tables = [_each(values[rounds]) for values in (plain, own)]
        final = _final(tables[0], tables[1], score, settings)
        above.append((final[:, -1:] > final[:, :-1]).sum(1))
    return (np.array(above) >= 1).mean(0), (np.array(above) >= HONEST / 2).mean(0)


def _each(values: Float64) -> Float64:
    """[l, r, 13] of [r, 12 + l]: the honest miners and one attack each."""
    fair = np.broadcast_to(values[None, :, :HONEST], (values.shape[1] - HONEST, len(values), HONEST))
    return np.concatenate([fair, values[:, HONEST:].T[:, :, None]], axis=2)


def patterns(evidence: Evidence) -> NDArray[np.bool_]:
    """Presence, [s, r, 16]."""
    rng = np.random.default_rng(1)
    rounds, miners = len(evidence.present), len(graded_names())
    there = np.zeros((_PATTERNS, rounds, miners), dtype=bool)
    np.put_along_axis(there[0], evidence.present, True, 1)
    for pattern in there[1:]:
        chosen = np.argsort(rng.random((rounds, miners)), axis=1)[:, :PRESENT]
        np.put_along_axis(pattern, chosen, True, 1)
    return there


def alternating(kept: Sequence[Evidence], score: Score, settings: Rating) -> dict[str, tuple[float, float]]:
    """A miner that works every second or fourth round and sends the last aggregate or its last gradient in between.

    Mean score over the honest median's mean, and the probability of a rating above the worst of 11 after 30 rounds.
    """
    made: dict[str, list[tuple[float, float]]] = {}
    for evidence in kept:
        x = np.array([evidence.vector(name) for name in (*honest_names(), "agg/1", "own/1", "own/2", "own/3")])
        parts = measured(evidence, x, HONEST - 1, score)
        turns = np.arange(len(evidence.gram))
        for every in (2, 4):
            idle = {"the last aggregate": np.full_like(turns, HONEST), "its own last": HONEST + turns % every}
            for name, places in idle.items():
                sent = np.where(turns % every == 0, HONEST - 1, places)
                result = _alternating(parts, sent, score, settings)
                made.setdefault(f"works every {every}. round, else {name}", []).append(result)
    return {name: (float(np.mean(values, 0)[0]), float(np.mean(values, 0)[1])) for name, values in made.items()}


def _alternating(
    parts: Sequence[Float64], sent: NDArray[np.int64], score: Score, settings: Rating
) -> tuple[float, float]:
    """For a miner that sends contribution `sent` [r]: mean score over the honest median's, and above the worst."""
    others, turns = HONEST - 1, np.arange(len(sent))
    plain, own = (np.concatenate([v[:, :others], v[turns, sent][:, None]], 1) for v in parts)
    made = compared(plain, own, others, score)[-_ROUNDS_OF_ATTACK:]
    final = rate(made[None], settings)[0][0, -1]
    relative = made[:, -1].mean() / np.median(made[:, :-1], 1).mean()
    return float(relative), float(final[-1] > final[:-1].min())


def four_attacks(kept: Sequence[Evidence], score: Score, settings: Rating, names: Sequence[str]) -> float:
    """Probability that any of four simultaneous attacks is rated above the worst honest miner after 30 rounds."""
    rng, above = np.random.default_rng(0), []
    places = [[*ATTACKS].index(name) for name in names]
    for evidence in kept:
        honest = np.array([evidence.vector(name) for name in honest_names()])
        fair = np.broadcast_to(honest, (len(evidence.gram), *honest.shape))
        x = np.concatenate([fair, contributions(evidence)[:, places]], axis=1)
        plain, own = measured(evidence, x, HONEST, score)
        for _ in range(_RESAMPLED):
            rounds = np.sort(rng.integers(len(plain), size=_ROUNDS_OF_ATTACK))
            made = compared(plain[rounds], own[rounds], x.shape[1], score)
            final = rate(made[None], settings)[0][0, -1]
            above.append(final[HONEST:].max() > final[:HONEST].min())
    return float(np.mean(above))
