"""The ranking as text: the table, a miner's rounds, and the result of a replay."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.replay import Difference
from fedgpt2.ranking.table import Entry, History, Rank
from fedgpt2.types import Hotkey

__all__ = ["change_lines", "difference_lines", "history_lines", "history_rows", "table_lines"]

_SHOWN = 20  # differences listed; the rest is counted


def table_lines(number: int, lines: Sequence[Rank]) -> list[str]:
    """The table, best first, with the uncertainty of each rating."""
    rows = [
        (
            str(line.rank),
            line.hotkey,
            f"{line.rating:.2f} ± {line.sigma:.2f}",
            f"{line.score:.2f}",
            f"{line.weight:.4f}" if line.tier == "paid" else f"({line.clean_rounds} clean)",
            f"{line.reliability:.2f}",
            f"{line.share:.2f}",
            f"{line.trusted:.2f}",
            f"{line.presence:.2f}",
            str(line.refusals),
        )
        for line in lines
    ]
    names = ("", "miner", "rating", "score", "pay", "reliable", "own", "own text", "present", "refused")
    return [f"Ranking after round {number}", "", *_columns([names, *rows])]


def history_lines(hotkey: Hotkey, rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """One miner's rounds, as `history_rows` gives them, oldest first."""
    names = ("round", "verdict", "score", "contribution", "own text", "place", "rating", "reliable", "pay")
    table = [names]
    for row in rounds:
        score = row["score"]
        verdict = " ".join(str(row[name]) for name in ("verdict", "reason", "keeper") if row[name] is not None)
        table.append(
            (
                str(row["round"]),
                verdict,
                "" if score is None else f"{score:+.3e}",
                "" if row["proven"] is None else f"{row['proven']:+.3f}",
                "" if row["grounded"] is None else f"{row['grounded']:+.2f}",
                "" if row["place"] is None else f"{row['place']}/{row['compared']}",
                f"{row['rating_before']:.2f} > {row['rating_after']:.2f} ± {row['sigma_after']:.2f}",
                f"{row['reliability']:.2f}",
                f"{row['weight']:.4f}",
            )
        )
    return [f"Rounds of {hotkey}", "", *_columns(table)]


def history_rows(hotkey: Hotkey, history: History, records: Sequence[RoundRecord]) -> list[dict[str, object]]:
    """One miner's rounds for JSON: verdict, the score with its parts, the rating before and after."""
    reasons = {record.round: _reason(hotkey, record) for record in records}
    return [
        {"round": number, "reason": reasons[number], **_entry_row(made[hotkey])}
        for number, made in history.entries
        if hotkey in made
    ]


def _reason(hotkey: Hotkey, record: RoundRecord) -> str | None:
    return next((miner.reason for miner in record.miners if miner.hotkey == hotkey), None)


def _entry_row(entry: Entry) -> dict[str, object]:
    """The fields of a receipt's `ranking`."""
    return {
        **msgspec.to_builtins(entry.ranking),
        "verdict": entry.verdict.value,
        "score": entry.score,
        "rating_after": entry.after.mu,
        "sigma_after": entry.after.sigma,
        "weight": entry.pay,
    }


def difference_lines(rounds: int, found: Sequence[Difference], other_revision: Sequence[int] = ()) -> list[str]:
    """The result of a replay by the recorded settings; `other_revision` lists rounds ranked by another revision."""
    count = f"{rounds} rounds recomputed from the evidence"
    if not found:
        return [f"{count}: every score, rating and pay equals the recorded one, to the bit"]
    lines = [
        f"  round {each.round} {each.hotkey} {each.what}: {each.recorded} recorded, {each.replayed} recomputed"
        for each in found[:_SHOWN]
    ]
    more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    what = "1 number differs" if len(found) == 1 else f"{len(found)} numbers differ"
    why = [_revision_line(other_revision)] if other_revision else []
    return [f"{count}: {what} from the record", *why, *lines, *more]


def _revision_line(rounds: Sequence[int]) -> str:
    which = f"round {rounds[0]} was" if len(rounds) == 1 else f"{len(rounds)} rounds from {rounds[0]} on were"
    return f"{which} ranked by another revision of the rule, which may rank equal evidence otherwise"


def change_lines(changes: Mapping[str, object], before: Sequence[Rank], after: Sequence[Rank]) -> list[str]:
    """The effect of other settings: rank, rating and pay of each miner before and after."""
    now = {line.hotkey: line for line in after}
    rows = [
        (
            line.hotkey,
            f"{line.rank} > {now[line.hotkey].rank}",
            f"{line.rating:.2f} > {now[line.hotkey].rating:.2f}",
            f"{line.weight:.4f} > {now[line.hotkey].weight:.4f}",
        )
        for line in before
    ]
    text = ", ".join(f"ranking.{name}={value}" for name, value in changes.items())
    return [f"With {text} instead of the run's settings:", *_columns([("miner", "rank", "rating", "pay"), *rows])]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
