"""The ranking as plain values: what a round's row, the ratings kept beside the ledger, and receipts say of it."""

from dataclasses import asdict

from fedgpt2.ranking.table import Entry, Table, ranks
from fedgpt2.types import Hotkey

__all__ = ["entry_row", "kept", "miner_row"]


def miner_row(entry: Entry) -> dict[str, object]:
    """What the round's row says of a miner: its score, its rating after the round, its share of the pay."""
    return {
        "score": entry.mark.score,
        "rating": entry.after.mu,
        "sigma": entry.after.sigma,
        "pay": entry.weight,
        "verdict": entry.mark.verdict.value,
    }


def kept(table: Table) -> dict[Hotkey, dict[str, object]]:
    """The table's lines by hotkey, for `Ledger.commit_round`."""
    return {line.hotkey: asdict(line) for line in ranks(table)}


def entry_row(entry: Entry) -> dict[str, object]:
    """One miner's round in full: what was found, the score and its parts, the rating before and after."""
    credit = entry.mark.credit
    return {
        "verdict": entry.mark.verdict.value,
        "keeper": entry.mark.keeper,
        "score": entry.mark.score,
        "raw": credit.raw if credit else None,
        "added": credit.added if credit else None,
        "own": credit.own if credit else None,
        "proven": entry.proven,
        "grounded": entry.grounded,
        "place": entry.place,
        "compared": entry.compared,
        "rating_before": entry.before.mu,
        "sigma_before": entry.before.sigma,
        "rating_after": entry.after.mu,
        "sigma_after": entry.after.sigma,
        "reliability": entry.reliability,
        "share": entry.share,
        "trusted": entry.trusted,
        "weight": entry.weight,
    }
