"""All answers of a group of trainings: numbers for the record, tables for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoring.attacks import ATTACKS, effort
from scoring.plackett_luce import Rating, kendall
from scoring.questions import (
    alternating,
    equals,
    four_attacks,
    gain,
    interval,
    loss_changes,
    order,
    padded,
    single_round,
    true_changes,
    truth,
    worst,
)
from scoring.scores import Evidence, Score
from scoring.shipped import RULES, paid, taus
from scoring.training import graded_names

__all__ = ["BEGIN", "CHOSEN", "END", "answers", "page", "shipped_answers", "shipped_page"]

BEGIN = "<!-- study: tables written by studies/ranking_study.py -->"
END = "<!-- end of study -->"
CHOSEN = Score("proven whole", "M+A2", raw=1 / 3, full=3 / 4)
SHARES = {
    "**a third of the whole effect, full at ¾**": CHOSEN,
    "half of it, full at ¾": replace(CHOSEN, raw=0.5),
    "all of it, full at ¾": replace(CHOSEN, raw=1.0),
    "none of it, full at ¾": replace(CHOSEN, raw=0.0),
    "a third of it, full at the median": replace(CHOSEN, full=1.0),
    "all of it, full at the median": Score("proven whole", "M+A2"),
}
_COMPARED = (Score(), Score("proven whole", "M+A2"), CHOSEN)  # attack by attack
_WORTH = Score(tokens=8192)  # the first truth: the whole effect
_ADDS = Score("whole", "M+A2", tokens=8192)  # the second: what a miner adds
RATING = Rating()  # openskill's defaults
RATINGS = {
    "openskill's": RATING,
    "openskill's, drift 0.3": Rating(tau=0.3),
    "openskill's, luck 8.3": Rating(beta=25 / 3),
    "gamma 1": Rating(damped=False),
    "gamma 1, drift 0.3": Rating(tau=0.3, damped=False),
    "gamma 1, drift 0.8": Rating(tau=0.8, damped=False),
    "gamma 1, luck 8.3": Rating(beta=25 / 3, damped=False),
}
TOKENS = (512, 1024, 2048, 4096, 8192)

FOUR = ("2 agg/1 - agg/2", "loud/1", "mean agg 1-4", "small + 1 loud/1")

_BASES = ("A1", "A2", "A4", "A8", "M", "M+A1", "M+A2", "M+A4")
SCORES = (
    Score(),
    *(Score("whole", basis) for basis in (*_BASES, "E", "U1", "U4", "U4+A4", "G")),
    *(Score("own", basis) for basis in _BASES),
    *(Score("own", "M+A2", blend=blend) for blend in (0.25, 0.5, 0.75)),
    *(Score(kind, "M+A2") for kind in ("positive", "novelty", "others", "round", "crowd")),
    Score("others"),
    *(Score(kind, "M+A2", smooth=10) for kind in ("whole", "own")),
    *(Score("proven", basis) for basis in ("M+A1", "M+A2", "M+A4")),
    *(Score("proven whole", basis) for basis in ("A1", "A2", "M", "M+A1", "M+A2", "M+A4")),
    *(replace(CHOSEN, memory=memory) for memory in (20, 10, 50)),
)
_SHOWN = (
    *("raw", "whole A1", "whole A4", "whole A8", "whole M", "whole M+A1", "whole M+A2", "whole U4", "own M+A2"),
    *("own M+A2 + 0.5 raw", "novelty M+A2", "others M+A2", "round M+A2", "crowd M+A2", "own M+A2 mean of 10"),
    *("proven M+A2", "proven whole M+A1", "proven whole M+A2", CHOSEN.name),
)

Values = NDArray[np.float64]


def shipped_answers(kept: Sequence[Evidence]) -> dict[str, Any]:
    """The numbers of the shipped rule and of Gauntlet's scores, for trainings that differ in the seed only."""
    truths = _truths(kept)
    return {
        "seeds": [evidence.name for evidence in kept],
        "shipped": {
            title: {
                "tau": {name: _spread(values) for name, values in taus(kept, *truths, rule).items()},
                "lies": {name: [_round(value) for value in values] for name, values in paid(kept, rule).items()},
            }
            for title, rule in RULES.items()
        },
        "baselines": {name: _spread(values) for name, values in loss_changes(kept, *truths, RATING).items()},
    }


def _truths(kept: Sequence[Evidence]) -> tuple[Values, Values]:
    adds = _ADDS if kept[0].moment else replace(_ADDS, basis="A2")
    return truth(kept, _WORTH), truth(kept, adds)


def answers(kept: Sequence[Evidence]) -> dict[str, Any]:
    """All numbers of a group of trainings that differ in the seed only."""
    truths = _truths(kept)
    worth = truths[0]
    return {
        **shipped_answers(kept),
        "loss": [[round(float(evidence.loss[r]), 3) for r in (0, len(evidence.loss) // 2, -1)] for evidence in kept],
        "grades": {
            name: {"worth": _round(whole / worth[0]), "adds": _round(added / truths[1][0])}
            for name, whole, added in zip(graded_names(), *truths, strict=True)
        },
        "tau_of_the_two_truths": _round(kendall(true_changes(kept)[None], worth)[0]),
        "scores": {score.name: _score(kept, score, truths) for score in SCORES},
        "tokens": {
            f"{score.name} {tokens}": _score(kept, replace(score, tokens=tokens), truths)
            for score in (Score(), Score("whole", "M+A2"), CHOSEN)
            for tokens in TOKENS
        },
        "shares": {words: _share(kept, score, truths) for words, score in SHARES.items()},
        "ratings": {words: _rating(kept, settings, truths) for words, settings in RATINGS.items()},
        "duty": {
            score.name: {name: [_round(v) for v in values] for name, values in alternating(kept, score, RATING).items()}
            for score in (*_COMPARED, Score("whole", "M+A2"))
        },
        "four_at_once": {score.name: _round(four_attacks(kept, score, RATING, FOUR)) for score in _COMPARED},
    }


def _rating(kept: Sequence[Evidence], settings: Rating, truths: tuple[Values, Values]) -> dict[str, Any]:
    found = order(kept, CHOSEN, *truths, settings)
    taus = {name: _spread(getattr(found, name)) for name in ("adds", "six_adds", "everybody", "six")}
    unpaid, spread = equals(kept, CHOSEN, settings)
    return {**taus, "equals_unpaid": _round(unpaid), "equals_spread": _round(spread)}


def _share(kept: Sequence[Evidence], score: Score, truths: tuple[Values, Values]) -> dict[str, Any]:
    settings = RATINGS["gamma 1, drift 0.3"]  # the shipped ones
    found, (unpaid, spread) = order(kept, score, *truths, settings), equals(kept, score, settings)
    taus = {name: _spread(getattr(found, name)) for name in ("adds", "six_adds", "everybody", "six")}
    pads = {name: [_round(value) for value in gained] for name, gained in padded(kept, score, settings).items()}
    return {**taus, "equals_unpaid": _round(unpaid), "equals_spread": _round(spread), "padded": pads}


def _score(kept: Sequence[Evidence], score: Score, truths: tuple[Values, Values]) -> dict[str, Any]:
    found, one = order(kept, score, *truths, RATING), single_round(kept, score, truths[0])
    gains = gain(kept, score, RATING)
    every = {name: [_round(values[i]) for values in vars(gains).values()] for i, name in enumerate(ATTACKS)}
    return {
        "tau": {name: _spread(getattr(found, name)) for name in found.__dataclass_fields__},
        "one_round": {"tau": _round(one[0]), "an_eighth_below_the_worst": _round(one[1])},
        "worst": {kind: worst(gains, kind, 1) for kind in ("0", "1/8", "stale")},
        "lies": every if score in _COMPARED else {},
        "by_seed": [_round(value) for value in found.everybody] if score in _COMPARED else [],
    }


def page(found: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """Markdown tables of the groups in `names`, with these titles."""
    lines = [*shipped_page(found, names), ""]
    for group, title in names.items():
        lines += [f"**{title}** ({len(found[group]['seeds'])} seeds)", "", *_scores(found[group]), ""]
    groups = {title: found[group] for group, title in names.items()}
    for title, numbers in groups.items():
        lines += [f"**Tokens** ({title})", "", *_tokens(numbers), ""]
    lines += ["**Weight of the whole effect, and where the share reaches 1**, without audits", "", *_shares(groups), ""]
    lines += ["**Rating settings**, for the rule's score", "", *_ratings(groups), ""]
    return [*lines, "**Attacks and their gain**", "", *_gains(groups)]


def shipped_page(found: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> list[str]:
    """The table of the shipped rule, audits included, beside Gauntlet's scores."""
    groups = {title: found[group] for group, title in names.items()}
    lines = [
        "| | " + " | ".join(f"{title} ({len(group['seeds'])} seeds)" for title, group in groups.items()) + " |",
        "|---|" + "---|" * len(groups),
    ]
    every = list(groups.values())
    rows = {**_baselines(every, "_adds", "what a miner adds"), **_baselines(every, "", "the whole effect")}
    for tokens in RULES:
        rows |= _ruled(f"**the rule, {tokens}**", [group["shipped"][tokens] for group in every])
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def _ruled(rule: str, every: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Cells by row of one rule, a column a group."""
    rows = {}
    for worth, words in (("adds", "what a miner adds"), ("whole", "the whole effect")):
        for there, who in (("all", "all 16"), ("six", "6 of 16")):
            shown = [[_both(g["tau"][f"{there} {order} {worth}"]) for order in ("rating", "table")] for g in every]
            rows[f"{rule}: τ with {words}, {who}: rating · table"] = [" · ".join(pair) for pair in shown]
    for kind, words in (("0", "no work"), ("1/8", "⅛ of the work"), ("stale", "an old answer")):
        rows[f"{rule}: {words}: above an honest miner · pay"] = [_most(g["lies"], kind) for g in every]
    rows[f"{rule}: honest miners unpaid beside an attack, of 12"] = [_unpaid(g["lies"]) for g in every]
    rows[f"{rule}: deviation of their pay over its mean"] = [_spreads(g["lies"]) for g in every]
    for name in (n for n in every[0]["lies"] if n.startswith("works")):
        rows[f"{rule}: {name}"] = ["{:.2f} · {:.2f}".format(*g["lies"][name][:2]) for g in every]
    return rows


def _baselines(every: Sequence[Mapping[str, Any]], suffix: str, words: str) -> dict[str, list[str]]:
    return {
        f"losses of 6 sampled, {how}, τ with {words}": [_both(g["baselines"][name + suffix]) for g in every]
        for name, how in (("rated", "Plackett-Luce"), ("mean", "running mean"))
    }


def _most(gains: Mapping[str, Sequence[float]], kind: str) -> str:
    """The attack of an effort that ends above an honest miner most often."""
    name = max((name for name in ATTACKS if effort(name) == kind), key=lambda name: tuple(gains[name]))
    above, pay, *_ = gains[name]
    return f"{above:.2f} · {pay:.2f} ({name})"


def _unpaid(gains: Mapping[str, Sequence[float]]) -> str:
    unpaid = [gains[name][2] for name in ATTACKS]
    return f"{np.mean(unpaid):.2f}, at most {max(unpaid):.2f}"


def _spreads(gains: Mapping[str, Sequence[float]]) -> str:
    return f"{np.mean([gains[name][3] for name in ATTACKS]):.2f}"


def _scores(group: Mapping[str, Any]) -> list[str]:
    lines = [
        "| score | τ, all 16 | τ, 6 of 16 | τ, 11 fresh · what is added | one round: τ · ⅛ below worst | no work "
        "| ⅛ of the work |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in _SHOWN:
        one = group["scores"][name]
        tau, single = one["tau"], one["one_round"]
        cells = [
            f"**{name}**" if name == CHOSEN.name else name,
            _both(tau["everybody"]),
            _both(tau["six"]),
            f"{tau['fresh']['mean']:.2f} · {tau['adds']['mean']:.2f}",
            f"{single['tau']:.2f} · {single['an_eighth_below_the_worst']:.2f}",
            *(_worst(one["worst"][kind][0], " mean of " in name) for kind in ("0", "1/8")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    baselines = group["baselines"]
    for name, words in (("rated", "Plackett-Luce"), ("mean", "running mean")):
        lines.append(f"| true loss changes of 6 sampled, {words} | {_both(baselines[name])} | the same | | | | |")
    return lines


def _tokens(group: Mapping[str, Any]) -> list[str]:
    lines = ["| scoring tokens | " + " | ".join(f"{t:,}" for t in TOKENS) + " |", "|---|" + "---|" * len(TOKENS)]
    for score in ("raw", "whole M+A2", CHOSEN.name):
        rows = [group["tokens"][f"{score} {tokens}"] for tokens in TOKENS]
        cells = {
            "τ, all 16": [f"{row['tau']['everybody']['mean']:.2f}" for row in rows],
            "τ, 6 of 16": [f"{row['tau']['six']['mean']:.2f}" for row in rows],
            "τ of one round": [f"{row['one_round']['tau']:.2f}" for row in rows],
            "⅛ below worst in": [f"{row['one_round']['an_eighth_below_the_worst']:.2f}" for row in rows],
            "best attack above worst": [
                f"{row['worst']['0'][0][3]:.2f} · {row['worst']['1/8'][0][3]:.2f}" for row in rows
            ],
        }
        lines += [f"| {score}: {name} | {' | '.join(values)} |" for name, values in cells.items()]
    return lines


_LISTED = (
    *("agg/1", "agg/2", "2 agg/1 - agg/2", "mean agg 1-4", "moment", "ema/0.5", "step/1", "sign/1", "loud/1", "top/1"),
    *("agg/1 + 1 random", "stale/1", "stale/4", "small", "small x4", "small x8", "wiener"),
    *("small + 1 agg/1", "small + 2 agg/1", "small - 2 agg/1", "small + 1 loud/1", "small x8 + 1 agg/1"),
)


def _shares(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    head = "τ, all 16 · 6 of 16 · of 12 equals unpaid · deviation of their pay · pay of the best padding over none"
    lines = [f"| compared | {' | '.join(f'{title}: {head}' for title in groups)} |", "|---|" + "---|" * len(groups)]
    for words in SHARES:
        cells = []
        for group in groups.values():
            one = group["shares"][words]
            pad = max(one["padded"], key=lambda name: one["padded"][name][0])
            gained = "{:.2f} ± {:.2f} ({})".format(*one["padded"][pad], pad)
            fair = f"{one['equals_unpaid']:.1f} · {one['equals_spread']:.2f}"
            cells.append(f"{_both(one['adds'])} · {_both(one['six_adds'])} · {fair} · {gained}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines


def _ratings(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = [f"{title}: τ, all 16 · 6 of 16 · of 12 equals unpaid" for title in groups]
    lines = ["| settings | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for words in RATINGS:
        cells = []
        for group in groups.values():
            one = group["ratings"][words]
            cells.append(f"{_both(one['adds'])} · {_both(one['six_adds'])} · {one['equals_unpaid']:.1f}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return lines


def _gains(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| sent | " + " | ".join(f"{title}: {score.name}" for title in groups for score in _COMPARED) + " |",
        "|---|" + "---|" * len(_COMPARED) * len(groups),
    ]
    for name in _LISTED:
        cells = []
        for group in groups.values():
            for score in _COMPARED:
                relative, beats, above, _ = group["scores"][score.name]["lies"][name]
                cells.append(f"{relative:.2f} · {beats:.2f} · {above:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    duties = next(iter(groups.values()))["duty"][CHOSEN.name]
    for name in duties:
        cells = []
        for group in groups.values():
            for score in _COMPARED:
                relative, above = group["duty"][score.name][name]
                cells.append(f"{relative:.2f} · - · {above:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _worst(attack: Sequence[Any], centred: bool) -> str:
    """An attack in a cell; a centred score has no ratio to the median."""
    name, relative, beats, above, _ = attack
    return f"{'-' if centred else f'{relative:.2f}'} · {beats:.2f} · {above:.2f} ({name})"


def _both(spread: Mapping[str, float]) -> str:
    low = spread["low"]
    return f"{spread['mean']:.2f}" if low is None else f"{spread['mean']:.2f} ({low:.2f})"


def _spread(values: Values) -> dict[str, Any]:
    mean, low = interval(values)
    return {"mean": _round(mean), "low": None if np.isnan(low) else _round(low)}


def _round(value: float) -> float:
    return round(float(value), 4)
