"""The ranking once more, from the rows of a ledger, and where it differs from what they say it was."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import msgspec

from fedgpt2.config import Ranking
from fedgpt2.errors import RunDirectoryError
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord
from fedgpt2.ranking.evidence import Evidence, rule_of
from fedgpt2.ranking.from_record import evidence_of
from fedgpt2.ranking.table import REVISION, Entry, History, Rank, Table, advance
from fedgpt2.types import Hotkey

__all__ = [
    "MEASURED",
    "Difference",
    "differences",
    "kept_differences",
    "otherwise_ranked",
    "replay",
    "table_of",
]

MEASURED = ("tokens", "sample", "trial", "audit")  # settings of what was measured, which no replay can measure again


_KEPT = ("rank", "rating", "sigma", "weight", "reliability", "trusted", "refusals")


@dataclass(frozen=True)
class Difference:
    """One number that came out otherwise: of a miner in a round, or of the kept table."""

    round: int
    hotkey: Hotkey
    what: str
    recorded: float | None
    replayed: float | None


def replay(rows: Sequence[RoundRecord], changes: Mapping[str, object] | None = None) -> History:
    """The ranking from the rows' evidence; each round by the settings it was ranked by, with `changes`."""
    table, entries = Table(), []
    for row in rows:
        evidence = evidence_of(row)
        table, made = advance(table, evidence, _rule(evidence, changes))
        entries.append((row.round, made))
    return History(table, tuple(entries))


def table_of(records: Iterable[RoundRecord]) -> tuple[Table, int]:
    """The table that `replay` ends with, and how many rounds another revision of the rule had ranked.

    For a validator that goes on: of a long run's rows it holds one at a time.
    """
    table, otherwise = Table(), 0
    for record in records:
        evidence = evidence_of(record)
        table, _ = advance(table, evidence, _rule(evidence, None))
        otherwise += evidence.revision != REVISION
    return table, otherwise


def otherwise_ranked(rows: Sequence[RoundRecord]) -> list[int]:
    """The rounds whose live ratings were made by another revision of the rule: a replay by this one may differ."""
    return [row.round for row in rows if row.evidence.revision != REVISION]


def _rule(evidence: Evidence, changes: Mapping[str, object] | None) -> Ranking:
    try:
        return rule_of(evidence, changes)
    except msgspec.ValidationError as error:
        raise RunDirectoryError(f"round {evidence.round} was ranked by settings that are none: {error}") from error


def differences(rows: Sequence[RoundRecord], history: History) -> list[Difference]:
    """Every score, rating, uncertainty and pay that is not, to the bit, the recorded one; in the order of the rows."""
    made = dict(history.entries)
    found = []
    for row in rows:
        for miner in row.miners:
            hotkey = Hotkey(miner.hotkey)
            entry = made[row.round].get(hotkey)
            for what, recorded, replayed in _pairs(miner, entry):
                if recorded != replayed:
                    found.append(Difference(row.round, hotkey, what, recorded, replayed))
    return found


def kept_differences(number: int, kept: Sequence[Rank], lines: Sequence[Rank]) -> list[Difference]:
    """Every number of the table of round `number` that is not, to the bit, the one kept beside the ledger."""
    made, stored = ({line.hotkey: asdict(line) for line in table} for table in (lines, kept))
    return [
        Difference(number, hotkey, f"kept {what}", stored.get(hotkey, {}).get(what), made.get(hotkey, {}).get(what))
        for hotkey in sorted(made.keys() | stored.keys())
        for what in _KEPT
        if stored.get(hotkey, {}).get(what) != made.get(hotkey, {}).get(what)
    ]


def _pairs(miner: MinerRecord, entry: Entry | None) -> list[tuple[str, float | None, float | None]]:
    made = (entry.mark.score, entry.after.mu, entry.after.sigma, entry.weight) if entry else (None,) * 4
    recorded = (miner.score, miner.rating, miner.sigma, miner.pay)
    return list(zip(("score", "rating", "sigma", "pay"), recorded, made, strict=True))
