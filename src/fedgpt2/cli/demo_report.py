"""Report of a demo: loss, a sample, the miners' table, and the goals it missed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fedgpt2.cli.demo_miners import ADMISSIBLE, CYCLE, DemoMiners
from fedgpt2.cli.process_group import ProcessGroup
from fedgpt2.errors import Reason
from fedgpt2.observe.board import Board, MinerStats

__all__ = ["EXPECTED_REFUSALS", "TARGET_LOSS", "DemoOutcome", "evaluate", "report"]

TARGET_LOSS = 6.9  # nats per token, near that of a unigram model
EXPECTED_REFUSALS = (Reason.WRONG_SHAPE, Reason.NON_FINITE, Reason.WRONG_PARENT, Reason.NORM_BOUND)

_SAMPLE = ("sample", "--prompt", "The people of the United States", "--tokens", "60", "--temperature", "0.7")
_SAMPLE_SECONDS = 30.0


@dataclass(frozen=True)
class DemoOutcome:
    """First and last held-out loss, and the goals that were missed."""

    first: float | None
    last: float | None
    missed: tuple[str, ...]


def report(folder: Path, processes: ProcessGroup, board: Board, miners: DemoMiners, out: TextIO) -> int:
    """Print the report; return the demo's exit code."""
    from rich.console import Console

    from fedgpt2.observe.console import miners_table

    outcome = evaluate(board, miners)
    console = Console(file=out, width=None if out.isatty() else 160, soft_wrap=True, highlight=False)
    lines = [_losses(board, outcome), "", *_sample(folder, processes), ""]
    console.print("\n".join(lines), markup=False)
    console.print(miners_table(board, console.width))
    where = f"run directory: {folder} (rounds.jsonl, ledger.sqlite, checkpoints/, logs/)"
    console.print("\n".join(["", *_hostile(board, miners), where]), markup=False)
    for line in outcome.missed:
        console.print(f"missed: {line}", markup=False)
    return 1 if outcome.missed else 0


def evaluate(board: Board, miners: DemoMiners) -> DemoOutcome:
    """Check the goals: the target loss is reached, bad answers are refused, admitted attacks gain no weight."""
    last = board.held_out[-1][1] if board.held_out else None
    missed = []
    if last is None:
        missed.append("no held-out loss was measured; raise --seconds")
    elif last >= TARGET_LOSS:
        missed.append(f"the held-out loss {last:.3f} is not below {TARGET_LOSS}")
    return DemoOutcome(board.initial, last, (*missed, *_missed_defences(board, miners)))


def _missed_defences(board: Board, miners: DemoMiners) -> Iterable[str]:
    if miners.hostile_axon is None:
        return
    hostile = board.miners.get(miners.hostile_axon)
    if hostile is None:
        yield "the hostile miner never took part"
        return
    admitted, admissible = hostile.statuses["admitted"], _admissible(sum(hostile.statuses.values()))
    if admitted > admissible:
        yield f"the hostile miner was admitted {admitted} times, with {admissible} answers that admission cannot refuse"
    if (weight := _mean_weight([hostile])) > (usual := _mean_weight(_honest(board, miners))):
        yield f"the hostile miner weighed {weight:.3f} in rounds that admitted it, an honest one {usual:.3f}"
    last = max((each.last.rank or 0 for each in board.miners.values() if each.last), default=0)
    if hostile.last is not None and hostile.last.rank is not None and hostile.last.rank < last:
        yield f"the hostile miner ranks {hostile.last.rank}, not last"
    for reason in EXPECTED_REFUSALS:
        if reason.value not in hostile.reasons:
            yield f"the hostile miner was never refused for {reason.value}"


def _admissible(rounds: int) -> int:
    """Number of the hostile miner's answers in so many rounds that pass admission."""
    return sum(CYCLE[i % len(CYCLE)] in ADMISSIBLE for i in range(rounds))


def _honest(board: Board, miners: DemoMiners) -> list[MinerStats]:
    return [stats for axon, stats in board.miners.items() if axon != miners.hostile_axon]


def _mean_weight(miners: Iterable[MinerStats]) -> float:
    """Mean weight of an admitted contribution; 0 if none was admitted."""
    known = list(miners)
    return sum(stats.weight for stats in known) / max(1, sum(stats.statuses["admitted"] for stats in known))


def _losses(board: Board, outcome: DemoOutcome) -> str:
    first = "-" if outcome.first is None else f"{outcome.first:.2f}"
    last = "-" if outcome.last is None else f"{outcome.last:.2f}"
    unigram = board.start.unigram_loss
    beside = "" if unigram is None else f"; a unigram model of the same text: {unigram:.2f}"
    rounds = board.last.round if board.last else 0
    return f"held-out loss {first} -> {last} after {rounds} rounds and {board.tokens:,} tokens{beside}"


def _sample(folder: Path, processes: ProcessGroup) -> list[str]:
    processes.start("sample", "fedgpt2", (*_SAMPLE, "--run.dir", str(folder)))
    if processes.wait("sample", _SAMPLE_SECONDS) != 0:
        return [f"no sample: {processes.last_error('sample') or 'it took too long'}"]
    text = processes.log("sample").read_text(encoding="utf-8").strip()
    return ["sample:", *(f"    {line}" for line in text.splitlines())]


def _hostile(board: Board, miners: DemoMiners) -> list[str]:
    stats = board.miners.get(miners.hostile_axon or "")
    if stats is None:
        return []
    reasons = ", ".join(f"{reason} {times}x" for reason, times in stats.reasons.items())
    rounds, admitted = sum(stats.statuses.values()), stats.statuses["admitted"]
    line = f"hostile miner {stats.axon}: refused in {stats.statuses['refused']} of {rounds} rounds: {reasons}"
    if not admitted:
        return [line]
    weight, usual = _mean_weight([stats]), _mean_weight(_honest(board, miners))
    attacks = " and ".join(name for name in CYCLE if name in ADMISSIBLE)
    return [line, f"    admitted in {admitted} ({attacks}) with weight {weight:.3f}; an honest miner's: {usual:.3f}"]
