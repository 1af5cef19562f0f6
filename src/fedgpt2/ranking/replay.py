"""The ranking recomputed from the records of a run, and where it differs from what they say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import msgspec

from fedgpt2.config import Ranking
from fedgpt2.errors import RunDirectoryError
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord
from fedgpt2.ranking.table import REVISION, Entry, History, Rank, Table, advance, rule_of
from fedgpt2.types import Hotkey

__all__ = ["MEASURED", "Difference", "differences", "other_revision", "replay", "stored_differences", "table_of"]

MEASURED = ("rule", "tokens", "audits")  # settings of what was measured, which a replay cannot measure again

_STORED = ("rank", "rating", "sigma", "weight", "reliability", "trusted", "refusals")


@dataclass(frozen=True)
class Difference:
    """A number that the replay computes otherwise: of a miner in a round, or in the stored table."""

    round: int
    hotkey: Hotkey
    what: str
    recorded: float | None
    replayed: float | None


def replay(records: Iterable[RoundRecord], changes: Mapping[str, object] | None = None) -> History:
    """The ranking from the evidence in the records; each round by its own settings, with `changes`.

    Raises RunDirectoryError for a record with invalid settings.
    """
    table, entries = Table(), []
    for record in records:
        table, made = advance(table, record, _rule(record, changes))
        entries.append((record.round, made))
    return History(table, tuple(entries))


def table_of(records: Iterable[RoundRecord]) -> tuple[Table, int]:
    """The last table of `replay`, and how many rounds were ranked by another revision of the rule.

    Holds one record at a time.
    """
    table, others = Table(), 0
    for record in records:
        table, _ = advance(table, record, _rule(record))
        others += record.evidence.revision != REVISION
    return table, others


def other_revision(records: Iterable[RoundRecord]) -> list[int]:
    """The rounds ranked by another revision of the rule: there a replay may differ."""
    return [record.round for record in records if record.evidence.revision != REVISION]


def _rule(record: RoundRecord, changes: Mapping[str, object] | None = None) -> Ranking:
    try:
        return rule_of(record, changes)
    except msgspec.ValidationError as error:
        raise RunDirectoryError(f"round {record.round} has invalid ranking settings: {error}") from error


def differences(records: Iterable[RoundRecord], history: History) -> list[Difference]:
    """Every score, rating, uncertainty and pay that differs in any bit from the recorded one."""
    made = dict(history.entries)
    return [
        Difference(record.round, miner.hotkey, what, recorded, replayed)
        for record in records
        for miner in record.miners
        for what, recorded, replayed in _pairs(miner, made[record.round][miner.hotkey])
        if recorded != replayed
    ]


def _pairs(miner: MinerRecord, entry: Entry) -> list[tuple[str, float | None, float | None]]:
    return [
        ("score", miner.score, entry.score),
        ("rating", miner.rating, entry.after.mu),
        ("sigma", miner.sigma, entry.after.sigma),
        ("pay", miner.pay, entry.pay),
    ]


def stored_differences(number: int, stored: Sequence[Rank], lines: Sequence[Rank]) -> list[Difference]:
    """Every number of the table after round `number` that differs in any bit from the one stored beside the ledger."""
    made, kept = ({line.hotkey: asdict(line) for line in table} for table in (lines, stored))
    return [
        Difference(number, hotkey, f"stored {what}", kept.get(hotkey, {}).get(what), made.get(hotkey, {}).get(what))
        for hotkey in sorted(made.keys() | kept.keys())
        for what in _STORED
        if kept.get(hotkey, {}).get(what) != made.get(hotkey, {}).get(what)
    ]
