"""`fedgpt2 ranking`: who helped, how sure we are of it, and the same once more from the evidence.

Without `--replay` it shows the ratings kept beside the ledger, with it those that follow from the ledger's evidence;
where none are kept the two are the same. The hash chain is checked first, always.
"""

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
    miner: str = setting("", "hotkey, or how it begins: this miner's rounds instead of the table")
    head: str = setting("", "head of the hash chain as a receipt names it: it must be one of this ledger's")
    replay: bool = setting(False, "rate every miner again from the evidence, and compare with what was recorded")
    set: tuple[str, ...] = setting((), "with --replay: other settings to rank by, such as ranking.tau=0.2")
    json: bool = setting(False, "one JSON object instead of a table")


@dataclass(frozen=True)
class Stored:
    """A ledger as a ranking reads it: its rows, the ratings kept beside them, the head of a chain that holds."""

    rows: "list[RoundRecord]"
    kept: "list[Rank] | None"
    head: str


@dataclass(frozen=True)
class Replayed:
    """The ranking once more: over how many rounds, its table, and what was recorded otherwise."""

    rounds: int
    lines: "list[Rank]"
    differences: "list[Difference]"


def main(argv: Sequence[str]) -> int:
    """Print the ranking; the exit code: 1 when a replay by the same settings came out otherwise.

    Raises UsageError for a setting that is none, RunDirectoryError for a ledger that was edited.
    """
    about = "Prints the ranking of a run's miners, one miner's rounds, or all of it computed again from the ledger."
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
            raise UsageError(f"--set {word}: write it with its value, as {name}=VALUE")
        flag = flags[name]
        if flag.key in MEASURED:
            raise UsageError(f"--set {word}: it was measured in the rounds; a replay cannot measure again")
        try:
            changes[flag.key] = flag.kind(text)
        except ValueError as error:
            raise UsageError(f"--set {word}: not a value of {name}") from error
        _check_range(word, float(text) if flag.kind is not str else None, flag.least, flag.most)
    _check_names(changes)
    return changes


def _check_range(word: str, value: float | None, least: float | None, most: float | None) -> None:
    if value is None or (least or 0.0) <= value <= (most if most is not None else 1e18):
        return
    raise UsageError(f"--set {word}: at least {least or 0.0:g}" + (f", at most {most:g}" if most is not None else ""))


def _check_names(changes: Mapping[str, object]) -> None:
    from fedgpt2.ranking.credit import check_rule

    check_rule(dataclasses.replace(Ranking(), **changes))  # type: ignore[arg-type]


def _read(run_dir: str, head: str) -> Stored:
    """The rows of a run whose chain holds and has `head`. Raises RunDirectoryError where an entry was edited."""
    path = open_run(run_dir).path / "ledger.sqlite"
    ledger = Ledger(path, reading=True)
    try:
        broken = ledger.broken_entry()
        if broken is not None:
            kind, number = ledger.entry(broken)
            raise RunDirectoryError(
                f"{path} was edited: entry {broken} ({kind} {number}) does not follow from the chain"
            )
        if head and not ledger.holds_head(head):
            raise RunDirectoryError(f"{path} was rewritten: no entry has the head {head[:16]} that the receipt names")
        rows, ratings = list(ledger.records()), ledger.ratings()
        kept = None if ratings is None else _kept(ratings.values())
        end = ledger.head
    finally:
        ledger.close()
    if not rows:
        raise RunDirectoryError(f"{path} holds no evidence: no round was ranked yet")
    return Stored(rows, kept, end)


def _kept(bodies: Iterable[str]) -> "list[Rank]":
    """The ratings kept beside the ledger, best first. Raises RunDirectoryError."""
    import msgspec

    from fedgpt2.ranking.table import Rank

    try:
        lines = [msgspec.json.decode(body, type=Rank) for body in bodies]
    except msgspec.DecodeError as error:
        raise RunDirectoryError(f"the ratings kept beside the ledger are damaged: {error}") from error
    return sorted(lines, key=lambda line: line.rank)


def _replayed(stored: Stored, changes: Mapping[str, object]) -> Replayed:
    from fedgpt2.ranking.replay import differences, kept_differences, replay
    from fedgpt2.ranking.table import ranks

    history = replay(stored.rows, changes)
    lines = ranks(history.table)
    found = differences(stored.rows, history)
    if stored.kept is not None:
        found += kept_differences(history.table.round, stored.kept, lines)
    return Replayed(len(history.entries), lines, found)


def _table(stored: Stored) -> "list[Rank]":
    """The ratings as they were kept; where they were not, as they follow from the evidence."""
    return _replayed(stored, {}).lines if stored.kept is None else stored.kept


def _json(stored: Stored, changes: Mapping[str, object], found: Replayed | None) -> dict[str, object]:
    from fedgpt2.ranking.replay import otherwise_ranked

    lines = found.lines if found else _table(stored)
    answer: dict[str, object] = {
        "round": stored.rows[-1].round,
        "head": stored.head,
        "miners": [dataclasses.asdict(line) for line in lines],
    }
    if found:
        differences = [dataclasses.asdict(each) for each in found.differences]
        answer["replay"] = {
            "rounds": found.rounds,
            "other_revision": otherwise_ranked(stored.rows),
            "changes": dict(changes),
            "differences": differences,
        }
    return answer


def _lines(stored: Stored, changes: Mapping[str, object], found: Replayed | None) -> list[str]:
    from fedgpt2.cli.rankings import change_lines, difference_lines, table_lines
    from fedgpt2.ranking.replay import otherwise_ranked

    number = stored.rows[-1].round
    if not found:
        return table_lines(number, _table(stored))
    if changes:
        said = change_lines(changes, _replayed(stored, {}).lines, found.lines)
    else:
        said = difference_lines(found.rounds, found.differences, otherwise_ranked(stored.rows))
    return [*table_lines(number, found.lines), "", *said, f"the hash chain holds; its head is {stored.head}"]


def _show_miner(settings: RankingCommand, stored: Stored, changes: Mapping[str, object]) -> None:
    from fedgpt2.cli.rankings import history_lines, history_rows
    from fedgpt2.ranking.replay import replay

    history = replay(stored.rows, changes)
    hotkey = _chosen(settings.miner, history.table.standings)
    rounds = history_rows(hotkey, history, stored.rows)
    print(
        json.dumps({"hotkey": hotkey, "rounds": rounds}) if settings.json else "\n".join(history_lines(hotkey, rounds))
    )


def _chosen(word: str, hotkeys: Iterable[Hotkey]) -> Hotkey:
    """The one hotkey that begins so. Raises UsageError."""
    found = [hotkey for hotkey in hotkeys if hotkey.startswith(word)]
    if len(found) != 1:
        who = f"{len(found)} miners of this run begin so" if found else "no miner of this run begins so"
        raise UsageError(f"--miner {word}: {who}")
    return found[0]
