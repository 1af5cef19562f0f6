"""`fedgpt2 ranking`: the table of a run's miners, the rounds of one miner, and the replay from the ledger.

Without `--replay` it shows the ratings stored beside the ledger, with it those computed from the ledger's records;
where none are stored the two are the same. The hash chain is checked first.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgpt2.cli.flags import flags_of
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.runs import open_run
from fedgpt2.cli.sources import suggestion
from fedgpt2.config import Ranking, setting
from fedgpt2.errors import RunDirectoryError, UsageError
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.types import Hotkey

if TYPE_CHECKING:
    from fedgpt2.protocol.round_record import RoundRecord
    from fedgpt2.ranking.replay import Difference
    from fedgpt2.ranking.table import Rank

__all__ = ["RankingCommand", "changes_of", "main"]


@dataclass(frozen=True)
class RankingCommand:
    """Settings of `fedgpt2 ranking`."""

    run_dir: str = setting("runs/default", "run directory", flag="run.dir")
    miner: str = setting("", "show the rounds of this miner: its hotkey or the first letters of it")
    head: str = setting("", "head of the hash chain quoted in a receipt; fail unless the ledger holds it")
    replay: bool = setting(False, "recompute the ranking from the ledger and list differences")
    set: tuple[str, ...] = setting((), "with --replay: other settings, such as ranking.tau=0.2")
    json: bool = setting(False, "print one JSON object")


@dataclass(frozen=True)
class Stored:
    """What a ledger holds of the ranking: records, the table after the last one, the head of the verified chain."""

    records: "list[RoundRecord]"
    lines: "list[Rank] | None"
    head: str


@dataclass(frozen=True)
class Replayed:
    """A recomputed ranking: number of rounds, the table, and the numbers that differ from the recorded ones."""

    rounds: int
    lines: "list[Rank]"
    differences: "list[Difference]"


def main(argv: Sequence[str]) -> int:
    """Print the ranking. The exit code is 1 where a replay by the recorded settings differs.

    Raises UsageError for an unknown setting, RunDirectoryError for a ledger that was edited.
    """
    about = "Prints the ranking of a run's miners; --replay recomputes it from the ledger."
    settings = parse(RankingCommand, _gathered(argv), prog="fedgpt2 ranking", about=about)
    changes = changes_of(settings.set)
    if changes and not settings.replay:
        raise UsageError("--set changes what --replay ranks by; add --replay")

    stored = _read(settings.run_dir, settings.head)
    found = _replayed(stored, changes) if settings.replay else None
    if settings.miner:
        _show_miner(settings, stored, changes)
    elif settings.json:
        print(json.dumps(_json(stored, changes, found)))
    else:
        print("\n".join(_lines(stored, changes, found)))
    return 1 if found and found.differences and not changes else 0


def _gathered(argv: Sequence[str]) -> list[str]:
    """`argv` with every `--set A --set B` as one `--set A B`."""
    rest: list[str] = []
    values: list[str] = []
    taking = False
    for word in argv:
        if word == "--set" or word.startswith("--set="):
            values += [word.removeprefix("--set=")] if "=" in word else []
            taking = "=" not in word
        elif taking and not word.startswith("-"):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return [*rest, "--set", *values] if values or "--set" in argv else rest


def changes_of(words: Sequence[str]) -> dict[str, object]:
    """Settings of group `ranking` from words such as `ranking.tau=0.2`. Raises UsageError."""
    from fedgpt2.ranking.replay import MEASURED

    flags = {f"ranking.{flag.key}": flag for flag in flags_of(Ranking)}
    changes: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in flags:
            raise UsageError(f"--set {word}: not a setting of ranking{suggestion(name, list(flags))}")
        if not equals:
            raise UsageError(f"--set {word}: add a value, as in {name}=VALUE")
        flag = flags[name]
        if flag.key in MEASURED:
            raise UsageError(f"--set {word}: it decides what is measured in a round; a replay cannot measure again")
        try:
            changes[flag.key] = dataclasses.replace(flag, key=name).checked(flag.kind(text))
        except ValueError as error:
            raise UsageError(f"--set {word}: not a value of {name}") from error
    return changes


def _read(run_dir: str, head: str) -> Stored:
    """What the ledger of a run holds. Raises RunDirectoryError where the chain is broken or lacks `head`."""
    path = open_run(run_dir).path / "ledger.sqlite"
    with contextlib.closing(Ledger(path, reading=True)) as ledger:
        broken = ledger.broken_entry()
        if broken is not None:
            kind, number = ledger.entry(broken)
            raise RunDirectoryError(
                f"{path} was edited: entry {broken} ({kind} {number}) does not follow from the chain"
            )
        if head and not ledger.holds_head(head):
            raise RunDirectoryError(f"{path} was rewritten: no entry has the head {head[:16]} that the receipt names")
        records, ratings = list(ledger.records()), ledger.ratings()
        end = ledger.head
    if not records:
        raise RunDirectoryError(f"{path} holds no evidence: no round was ranked yet")
    return Stored(records, None if ratings is None else _decoded(ratings.values()), end)


def _decoded(bodies: Iterable[str]) -> "list[Rank]":
    """The stored table, best first. Raises RunDirectoryError."""
    import msgspec

    from fedgpt2.ranking.table import Rank

    try:
        lines = [msgspec.json.decode(body, type=Rank) for body in bodies]
    except msgspec.DecodeError as error:
        raise RunDirectoryError(f"the ratings stored beside the ledger are damaged: {error}") from error
    return sorted(lines, key=lambda line: line.rank)


def _replayed(stored: Stored, changes: Mapping[str, object]) -> Replayed:
    from fedgpt2.ranking.replay import differences, replay, stored_differences
    from fedgpt2.ranking.table import ranks

    history = replay(stored.records, changes)
    lines = ranks(history.table)
    found = differences(stored.records, history)
    if stored.lines is not None:
        found += stored_differences(history.table.round, stored.lines, lines)
    return Replayed(len(history.entries), lines, found)


def _table(stored: Stored) -> "list[Rank]":
    """The stored table; recomputed where none is stored."""
    return _replayed(stored, {}).lines if stored.lines is None else stored.lines


def _json(stored: Stored, changes: Mapping[str, object], found: Replayed | None) -> dict[str, object]:
    from fedgpt2.ranking.replay import other_revision

    lines = found.lines if found else _table(stored)
    answer: dict[str, object] = {
        "round": stored.records[-1].round,
        "head": stored.head,
        "miners": [dataclasses.asdict(line) for line in lines],
    }
    if found:
        answer["replay"] = {
            "rounds": found.rounds,
            "other_revision": other_revision(stored.records),
            "changes": dict(changes),
            "differences": [dataclasses.asdict(each) for each in found.differences],
        }
    return answer


def _lines(stored: Stored, changes: Mapping[str, object], found: Replayed | None) -> list[str]:
    from fedgpt2.cli.ranking_report import change_lines, difference_lines, table_lines
    from fedgpt2.ranking.replay import other_revision

    number = stored.records[-1].round
    if not found:
        return table_lines(number, _table(stored))
    if changes:
        notes = change_lines(changes, _replayed(stored, {}).lines, found.lines)
    else:
        notes = difference_lines(found.rounds, found.differences, other_revision(stored.records))
    return [*table_lines(number, found.lines), "", *notes, f"the hash chain is intact; its head is {stored.head}"]


def _show_miner(settings: RankingCommand, stored: Stored, changes: Mapping[str, object]) -> None:
    from fedgpt2.cli.ranking_report import history_lines, history_rows
    from fedgpt2.ranking.replay import replay

    history = replay(stored.records, changes)
    hotkey = _chosen(settings.miner, history.table.standings)
    rounds = history_rows(hotkey, history, stored.records)
    print(
        json.dumps({"hotkey": hotkey, "rounds": rounds}) if settings.json else "\n".join(history_lines(hotkey, rounds))
    )


def _chosen(word: str, hotkeys: Iterable[Hotkey]) -> Hotkey:
    """The one hotkey that starts with `word`. Raises UsageError."""
    found = [hotkey for hotkey in hotkeys if hotkey.startswith(word)]
    if len(found) != 1:
        raise UsageError(f"--miner {word}: {len(found) or 'no'} hotkeys of this run start with it")
    return found[0]
