"""Run directories with a ledger, ranked round by round as a validator does it."""

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

from fedgpt2.config import PRESETS
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.table import Table, advance, rating_lines, with_ranking
from fedgpt2.types import Hotkey

RUN_ID = "ab" * 32
SENDER = Hotkey("validator")


def write_run(folder: Path, rounds: Iterable[RoundRecord], *, keep: bool = True) -> Table:
    """A run directory of these rounds; the table after the last."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"model": dataclasses.asdict(PRESETS["tiny"]), "run_id": RUN_ID, "identity": {"codec.state": "fp32"}}
    (folder / "config.json").write_text(json.dumps(facts))
    ledger, table = Ledger(folder / "ledger.sqlite"), Table()
    ledger.create(RUN_ID)
    for record in rounds:
        table, entries = advance(table, record)
        ranked = with_ranking(record, table, entries)
        ledger.commit_round(ranked, sender=SENDER, ratings=rating_lines(table) if keep else None)
    ledger.close()
    return table


def edit(folder: Path, seq: int, change: Callable[[dict], None]) -> None:
    """Change the body of an entry behind the ledger's back."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        (body,) = db.execute("SELECT body FROM entries WHERE seq = ?", (seq,)).fetchone()
        value = json.loads(body)
        change(value)
        db.execute("UPDATE entries SET body = ? WHERE seq = ?", (json.dumps(value, separators=(",", ":")), seq))
    db.close()
