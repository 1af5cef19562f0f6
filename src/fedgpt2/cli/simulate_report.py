"""Results of a simulation as tables."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table

from fedgpt2.observe.formatting import loss, short_key
from fedgpt2.simulate.result import Miner, Result, Round

__all__ = ["show"]

_MOST_MINERS = 24  # listed one by one
_MOST_ROUNDS = 12
_STATUSES = ("admitted", "refused", "failed")


def show(result: Result, out: TextIO) -> None:
    """Print losses, rounds, and the results of honest and hostile miners."""
    console = Console(file=out, width=None if out.isatty() else 120, soft_wrap=True, highlight=False)
    console.print(_headline(result), markup=False)
    if not result.rounds:
        return
    console.print(_rounds(result.rounds))
    console.print(_groups(result))
    if len(result.miners) <= _MOST_MINERS:
        console.print(_miners(result))


def _headline(result: Result) -> str:
    config, unigram = result.config, result.unigram_loss
    miners = f"{config.miners} miners"
    if config.byzantine > 0 and config.attack != "none":
        miners += f", {config.byzantine} of them {config.attack}"
    beside = "" if unigram is None else f"; a unigram model of the same text: {loss(unigram)}"
    done = f"{len(result.rounds)} rounds of {miners}, {config.aggregation.rule}"
    return f"held-out loss {loss(result.final_val_loss)} after {done}{beside}"


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _rounds(rounds: Sequence[Round]) -> Table:
    """Some of the rounds; if the held-out loss was measured, only rounds where it was."""
    names = ("round", "train", "held-out", "hostile share", "cosine", "seconds")
    table = _table((), names)
    table.add_column("weights")
    measured = [row for row in rounds if row.val_loss is not None] or list(rounds)
    step = -(-len(measured) // _MOST_ROUNDS)
    for row in measured[::-1][::step][::-1]:
        cells = (loss(row.train_loss), loss(row.val_loss), _share(row.hostile_share), _number(row.cosine))
        kept = "stepped" if row.applied else "kept"
        why = f"{kept}: {row.reason}" if row.reason else kept
        table.add_row(str(row.round), *cells, f"{row.seconds:.2f}", why)
    return table


def _groups(result: Result) -> Table:
    """One row for the honest and one for the hostile miners."""
    table = _table(("",), ("miners", *_STATUSES, "weight a round"))
    table.add_column("refusals")
    for name, hostile in (("honest", False), ("hostile", True)):
        members = [miner for miner in result.miners if miner.hostile is hostile]
        if members:
            *counts, refusals = _counts(result, members)
            weight = f"{sum(miner.weight for miner in members):.3f}"
            table.add_row(name, str(len(members)), *counts, weight, refusals)
    return table


def _miners(result: Result) -> Table:
    """All miners by rank; unranked ones last, by weight."""
    table = _table(("miner", ""), ("rank", "rating", *_STATUSES, "weight a round"))
    table.add_column("refusals")
    for miner in sorted(result.miners, key=lambda miner: (miner.rank or sys.maxsize, -miner.weight)):
        *counts, refusals = _counts(result, [miner])
        kind = "hostile" if miner.hostile else "honest"
        rank = ("-", "-") if miner.rank is None or miner.rating is None else (str(miner.rank), f"{miner.rating:.1f}")
        table.add_row(short_key(miner.hotkey), kind, *rank, *counts, f"{miner.weight:.3f}", refusals)
    return table


def _counts(result: Result, miners: Sequence[Miner]) -> list[str]:
    """Numbers of admitted, refused and failed answers of these miners, and the reasons."""
    hotkeys = {miner.hotkey for miner in miners}
    accounts = [account for account in result.board.miners.values() if account.hotkey in hotkeys]
    statuses, reasons = Counter[str](), Counter[str]()
    for account in accounts:
        statuses += account.statuses
        reasons += account.reasons
    return [
        *(str(statuses[status]) for status in _STATUSES),
        ", ".join(f"{why} {n}x" for why, n in reasons.most_common()),
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
