"""Rounds made of small vectors, and evidence of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from fedgpt2.ranking.evidence import Evidence, Free, MinerEvidence, Products, rule_row

from fedgpt2.config import Ranking
from fedgpt2.ranking.table import REVISION

AGGREGATE, MOMENT = Free(kind="aggregate", age=1), Free(kind="moment")


def products(
    xs: Mapping[str, np.ndarray], g: np.ndarray, free: Sequence[tuple[Free, np.ndarray]] = (), *, gram: bool = True
) -> Products:
    """Inner products in float64."""
    names, b = list(xs), [vector for _, vector in free]
    return Products(
        miners=tuple(names),
        free=tuple(kind for kind, _ in free),
        gradient_norm=float(np.sqrt(g @ g)),
        gradient=tuple(float(g @ xs[name]) for name in names),
        gradient_free=tuple(float(g @ v) for v in b),
        contributions_free=tuple(tuple(float(xs[name] @ v) for v in b) for name in names),
        free_gram=tuple(tuple(float(v @ w) for w in b[: i + 1]) for i, v in enumerate(b)),
        gram=tuple(tuple(float(xs[n] @ xs[m]) for m in names[: i + 1]) for i, n in enumerate(names)) if gram else None,
    )


def evidence(
    number: int,
    xs: Mapping[str, np.ndarray],
    g: np.ndarray,
    free: Sequence[tuple[Free, np.ndarray]] = (),
    *,
    rule: Ranking | None = None,
    clusters: Mapping[str, int] | None = None,
    committed: Mapping[str, float] | None = None,
    others: Sequence[MinerEvidence] = (),
    gram: bool = True,
) -> Evidence:
    """A round in which the miners of `xs` were admitted, and `others` were not."""
    miners = [
        MinerEvidence(
            hotkey=name,
            status="admitted",
            digest=f"{i:064x}",
            norm=float(np.sqrt(x @ x)),
            tokens=1024,
            committed=(committed or {}).get(name, 1.0 + i),
            seconds=2.0 + i,
            cluster=(clusters or {}).get(name),
            weight=1.0 / len(xs),
        )
        for i, (name, x) in enumerate(xs.items())
    ]
    return Evidence(
        round=number,
        revision=REVISION,
        applied=True,
        rule=rule_row(rule or Ranking()),
        picks=((0, number), (1, number)),
        miners=(*miners, *others),
        products=products(xs, g, free, gram=gram),
    )


def refused(name: str, reason: str = "non_finite", fault: str = "MINER") -> MinerEvidence:
    return MinerEvidence(hotkey=name, status="refused", reason=reason, fault=fault, seconds=1.0)


def unheard(name: str) -> MinerEvidence:
    return MinerEvidence(hotkey=name, status="failed", reason="cut_off", fault="NETWORK", seconds=1.0)


def noisy_rounds(
    quality: Mapping[str, float], rounds: int, seed: int = 0, d: int = 200, rule: Ranking | None = None
) -> list[Evidence]:
    """Honest rounds: each miner sends the true gradient with noise of its own, less of it the better it is."""
    draw = np.random.default_rng(seed)
    made: list[Evidence] = []
    last = draw.normal(size=d)
    for number in range(1, rounds + 1):
        g = draw.normal(size=d)
        xs = {name: g + draw.normal(size=d) * (4.0 / worth) for name, worth in quality.items()}
        made.append(evidence(number, xs, g, [(AGGREGATE, last)], rule=rule))
        last = np.mean(list(xs.values()), axis=0)
    return made


def shuffled(round_: Evidence, seed: int) -> Evidence:
    """The same round with its miners, and the rows of its inner products, in another order."""
    draw = np.random.default_rng(seed)
    miners = [round_.miners[i] for i in draw.permutation(len(round_.miners))]
    assert round_.products is not None
    p = round_.products
    order = draw.permutation(len(p.miners)).tolist()
    full = None
    if p.gram is not None:
        whole = [[p.gram[max(i, j)][min(i, j)] for j in order] for i in order]
        full = tuple(tuple(row[: i + 1]) for i, row in enumerate(whole))
    return _with(
        round_,
        miners=tuple(miners),
        products=_with(
            p,
            miners=tuple(p.miners[i] for i in order),
            gradient=tuple(p.gradient[i] for i in order),
            contributions_free=tuple(p.contributions_free[i] for i in order),
            gram=full,
        ),
    )


def _with(record, **changes):
    import msgspec

    return msgspec.structs.replace(record, **changes)


def rule(**changes: object) -> Ranking:
    return replace(Ranking(), **changes)  # type: ignore[arg-type]
