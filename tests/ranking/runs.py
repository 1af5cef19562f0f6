"""Run directories with a ledger, ranked round by round as a validator does it."""

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

from fedgpt2.ranking.evidence import Evidence, as_row
from fedgpt2.ranking.record import kept, miner_row

from fedgpt2.config import PRESETS
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.ranking.table import Table, advance

RUN_ID = "ab" * 32


def write_run(folder: Path, rounds: Iterable[Evidence], *, keep: bool = True) -> Table:
    """A run directory of these rounds; the table after the last."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"model": dataclasses.asdict(PRESETS["tiny"]), "run_id": RUN_ID, "identity": {"codec.state": "fp32"}}
    (folder / "config.json").write_text(json.dumps(facts))
    ledger, table = Ledger(folder / "ledger.sqlite"), Table()
    ledger.set_meta({"run_id": RUN_ID})
    for evidence in rounds:
        table, entries = advance(table, evidence)
        ledger.commit_round(evidence.round, 0, row(evidence, entries), None, kept(table) if keep else None)
    ledger.close()
    return table


def row(evidence: Evidence, entries: dict) -> dict[str, object]:
    """The row of a round."""
    return {
        "round": evidence.round,
        "applied": evidence.applied,
        "miners": [{"hotkey": m.hotkey, "status": m.status, **miner_row(entries[m.hotkey])} for m in evidence.miners],
        "evidence": as_row(evidence),
    }


def edit(folder: Path, seq: int, change: Callable[[dict], None]) -> None:
    """Change the body of an entry behind the ledger's back."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        (body,) = db.execute("SELECT body FROM entries WHERE seq = ?", (seq,)).fetchone()
        value = json.loads(body)
        change(value)
        db.execute("UPDATE entries SET body = ? WHERE seq = ?", (json.dumps(value, separators=(",", ":")), seq))
    db.close()
