"""Equal evidence and settings rank the same, to nine digits, under one REVISION."""

from collections.abc import Callable

import numpy as np
import pytest

from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.contribution_share import bound, contribution_shares
from fedgpt2.ranking.data_authenticity import authenticity
from fedgpt2.ranking.table import REVISION, fold
from tests.ranking.test_data_authenticity import D, audit, audited, world
from tests.ranking.worlds import AGGREGATE, failed, refused, round_of, with_evidence


def mixed_world(rounds: int) -> list[RoundRecord]:
    """Honest miners of two strengths, a scrap behind a replay, a replay, a copy, a refused and an unreachable one.

    The noise of a text that audits find falls from round to round, through all weights of the audits.
    """
    draw = np.random.default_rng(5)
    common, made = draw.normal(size=D), []
    names = [*(f"h{i}" for i in range(5)), "half", "scrap", "copy", "replay"]
    last = common.copy()
    for number in range(1, rounds + 1):
        true = common + 0.4 * draw.normal(size=D)
        g = true + 0.2 * draw.normal(size=D)
        texts = {name: true + (1.2 if name == "half" else 0.8) * draw.normal(size=D) for name in names}
        scrap = true + 3.0 * (texts["scrap"] - true)
        xs = texts | {"scrap": scrap / np.linalg.norm(scrap) + last / np.linalg.norm(last), "replay": last}
        xs["copy"] = texts["h0"] + 0.01 * draw.normal(size=D)
        clusters = {name: names.index("h0" if name == "copy" else name) for name in names}
        absent = [refused("mallory")] if number % 2 else [failed("silent")]
        one = round_of(number, xs, g, [(AGGREGATE, last)], clusters=clusters, others=absent)
        asked = [names[(number * 3 + k) % len(names)] for k in range(3)]
        audits = tuple(audit(name, true + (texts[name] - true) / (1.0 + 0.1 * number), xs[name]) for name in asked)
        made.append(with_evidence(one, audits=audits))
        last = np.mean([xs[f"h{i}"] for i in range(5)], axis=0)
    return made


@pytest.mark.parametrize("name", ["noisy", "mean", "mixed"])
def test_another_rule_is_another_revision(golden: Callable[[str, object], None], name: str) -> None:
    """Where this fails, equal evidence ranks otherwise than before: raise REVISION and write its golden files."""
    rounds = mixed_world(24) if name == "mixed" else world(10, 1, name)
    lines = [
        [number, hotkey, entry.verdict, *map(_digits, (entry.score, entry.ranking.trusted, entry.after.mu))]
        for number, made in fold(rounds).entries
        for hotkey, entry in made.items()
    ]
    golden(f"ranking-{REVISION}-{name}.json", lines)


def test_other_parts_of_the_rule_are_another_revision(golden: Callable[[str, object], None]) -> None:
    found: dict[str, list[list[float | None]]] = {"authenticity": [], "ratios": [], "shares": [], "bounds": []}
    for shown in (0.02, 0.2, 0.25, 0.4, 0.8, 1.6):  # signals of honest miners, around FAINT and TELLING
        for audits in (1, 3, 8):
            honest = {f"h{i}": [shown] * audits for i in range(9)}
            others = {f"o{i}": [0.1 * i * shown] * audits for i in range(9)} | {"up": [9.0], "down": [-9.0]}
            contexts = audited(honest | others)
            found["authenticity"].append([_digits(part) for part in authenticity(contexts).values()])
            found["ratios"].append([_digits(each.history.mean.value(0.0)) for each in contexts.values()])
    for middle in (6e-4, 1e-2, 0.1):
        found["bounds"].append([_digits(bound([middle, middle, 3.0 * middle]))])
        found["shares"].append(
            [_digits(part) for part in contribution_shares({str(i): middle * i / 8 for i in range(17)}).values()]
        )
    golden(f"ranking-{REVISION}-parts.json", found)


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")
