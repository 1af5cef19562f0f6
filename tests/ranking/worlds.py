"""Records of rounds made of small vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import msgspec
import numpy as np

from fedgpt2.config import Ranking
from fedgpt2.protocol.round_record import BaselineVector, Evidence, MinerRecord, Products, RoundRecord
from fedgpt2.ranking.table import REVISION
from fedgpt2.types import Hotkey
from tests.records import miner_record, round_record

AGGREGATE, MOMENT = BaselineVector(kind="aggregate", age=1), BaselineVector(kind="moment")


def products(
    xs: Mapping[str, np.ndarray], g: np.ndarray, baseline: Sequence[tuple[BaselineVector, np.ndarray]] = ()
) -> Products:
    """Inner products in float64."""
    names, b = list(xs), [vector for _, vector in baseline]
    return Products(
        miners=tuple(map(Hotkey, names)),
        baseline=tuple(kind for kind, _ in baseline),
        gradient_norm=float(np.sqrt(g @ g)),
        gradient=tuple(float(g @ xs[name]) for name in names),
        gradient_baseline=tuple(float(g @ v) for v in b),
        contributions_baseline=tuple(tuple(float(xs[name] @ v) for v in b) for name in names),
        baseline_gram=tuple(tuple(float(v @ w) for w in b[: i + 1]) for i, v in enumerate(b)),
    )


def refused(name: str, reason: str = "non_finite") -> MinerRecord:
    return miner_record(name, reason=reason)


def failed(name: str) -> MinerRecord:
    """A miner whose link failed."""
    return miner_record(name, status="failed", reason="cut_off", fault="NETWORK")


def round_of(
    number: int,
    xs: Mapping[str, np.ndarray],
    g: np.ndarray,
    baseline: Sequence[tuple[BaselineVector, np.ndarray]] = (),
    *,
    rule: Ranking | None = None,
    clusters: Mapping[str, int] | None = None,
    committed: Mapping[str, float] | None = None,
    others: Sequence[MinerRecord] = (),
) -> RoundRecord:
    """A round in which the miners of `xs` were admitted, and `others` were not."""
    admitted = [
        miner_record(
            name,
            digest=f"{i:064x}",
            norm=float(np.sqrt(x @ x)),
            committed=(committed or {}).get(name, 1.0 + i),
            cluster=(clusters or {}).get(name),
            weight=1.0 / len(xs),
        )
        for i, (name, x) in enumerate(xs.items())
    ]
    evidence = Evidence(
        revision=REVISION,
        rule=asdict(rule or Ranking()),
        picks=((0, number), (1, number)),
        products=products(xs, g, baseline),
    )
    return round_record(number, [*admitted, *others], evidence=evidence)


def noisy_rounds(
    quality: Mapping[str, float], rounds: int, seed: int = 0, d: int = 200, rule: Ranking | None = None
) -> list[RoundRecord]:
    """Honest rounds: each miner sends the true gradient with noise of its own, less of it the better it is."""
    draw = np.random.default_rng(seed)
    made: list[RoundRecord] = []
    last = draw.normal(size=d)
    for number in range(1, rounds + 1):
        g = draw.normal(size=d)
        xs = {name: g + draw.normal(size=d) * (4.0 / worth) for name, worth in quality.items()}
        made.append(round_of(number, xs, g, [(AGGREGATE, last)], rule=rule))
        last = np.mean(list(xs.values()), axis=0)
    return made


def with_evidence(record: RoundRecord, **changes: object) -> RoundRecord:
    """The record with other evidence."""
    return msgspec.structs.replace(record, evidence=msgspec.structs.replace(record.evidence, **changes))


def with_products(record: RoundRecord, **changes: object) -> RoundRecord:
    """The record with other inner products."""
    assert record.evidence.products is not None
    return with_evidence(record, products=msgspec.structs.replace(record.evidence.products, **changes))


def shuffled(record: RoundRecord, seed: int) -> RoundRecord:
    """The same round with its miners, and the rows of its inner products, in another order."""
    draw = np.random.default_rng(seed)
    miners = [record.miners[i] for i in draw.permutation(len(record.miners))]
    p = record.evidence.products
    assert p is not None
    order = draw.permutation(len(p.miners)).tolist()
    return with_products(
        msgspec.structs.replace(record, miners=tuple(miners)),
        miners=tuple(p.miners[i] for i in order),
        gradient=tuple(p.gradient[i] for i in order),
        contributions_baseline=tuple(p.contributions_baseline[i] for i in order),
    )


def rule(**changes: object) -> Ranking:
    return replace(Ranking(), **changes)  # type: ignore[arg-type]
