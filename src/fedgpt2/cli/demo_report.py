"""What a demo came to: the loss, a sample, every miner's account, and what was missed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fedgpt2.cli.demo_miners import ADMISSIBLE, CYCLE, Cast
from fedgpt2.cli.process_group import Crew
from fedgpt2.errors import Reason
from fedgpt2.observe.board import Board, MinerStats

__all__ = ["EXPECTED", "LEARNED", "RoundOutcome", "judge", "report"]

LEARNED = 6.9  # nats a token: near what word frequencies alone give
EXPECTED = (Reason.WRONG_SHAPE, Reason.NON_FINITE, Reason.WRONG_PARENT, Reason.NORM_BOUND)

_SAMPLE = ("sample", "--prompt", "The people of the United States", "--tokens", "60", "--temperature", "0.7")
_SAMPLE_SECONDS = 30.0


@dataclass(frozen=True)
class RoundOutcome:
    """The losses, and what was missed; nothing missed is success."""

    first: float | None
    last: float | None
    missed: tuple[str, ...]


def report(folder: Path, crew: Crew, board: Board, cast: Cast, out: TextIO) -> int:
    """Print it; the demo's exit code."""
    from rich.console import Console

    from fedgpt2.observe.console import miners_table

    verdict = judge(board, cast)
    console = Console(file=out, width=None if out.isatty() else 160, soft_wrap=True, highlight=False)
    lines = [_losses(board, verdict), "", *_sample(folder, crew), ""]
    console.print("\n".join(lines), markup=False)
    console.print(miners_table(board, console.width))
    console.print("\n".join(["", *_hostile(board, cast), *_whereabouts(folder)]), markup=False)
    for line in verdict.missed:
        console.print(f"missed: {line}", markup=False)
    return 1 if verdict.missed else 0


def judge(board: Board, cast: Cast) -> RoundOutcome:
    """Whether the model learned; the hostile miner was refused where it can be, and gained nothing where it cannot."""
    last = board.held_out[-1][1] if board.held_out else None
    missed = []
    if last is None:
        missed.append("no held-out loss was measured; give it more --seconds")
    elif last >= LEARNED:
        missed.append(f"the held-out loss {last:.3f} is not below {LEARNED}")
    return RoundOutcome(board.initial, last, (*missed, *_escapes(board, cast)))


def _escapes(board: Board, cast: Cast) -> Iterable[str]:
    if cast.hostile_axon is None:
        return
    account = board.miners.get(cast.hostile_axon)
    if account is None:
        yield "the hostile miner never took part"
        return
    admitted, admissible = account.statuses["admitted"], _admissible(sum(account.statuses.values()))
    if admitted > admissible:
        yield f"the hostile miner was admitted {admitted} times, of {admissible} answers that only the rule can judge"
    if (weight := _weight([account])) > (usual := _weight(_honest(board, cast))):
        yield f"the hostile miner weighed {weight:.3f} in rounds that admitted it, an honest one {usual:.3f}"
    last = max((each.last.rank or 0 for each in board.miners.values() if each.last), default=0)
    if account.last is not None and account.last.rank is not None and account.last.rank < last:
        yield f"the hostile miner ranks {account.last.rank}, not last"
    for reason in EXPECTED:
        if reason.value not in account.reasons:
            yield f"the hostile miner was never refused for {reason.value}"


def _admissible(rounds: int) -> int:
    """How many of the answers of so many rounds are well-formed lies."""
    return sum(CYCLE[i % len(CYCLE)] in ADMISSIBLE for i in range(rounds))


def _honest(board: Board, cast: Cast) -> list[MinerStats]:
    return [account for axon, account in board.miners.items() if axon != cast.hostile_axon]


def _weight(accounts: Iterable[MinerStats]) -> float:
    """Mean weight of a contribution that was admitted; 0 where none was."""
    known = list(accounts)
    return sum(account.weight for account in known) / max(1, sum(account.statuses["admitted"] for account in known))


def _losses(board: Board, verdict: RoundOutcome) -> str:
    first = "-" if verdict.first is None else f"{verdict.first:.2f}"
    last = "-" if verdict.last is None else f"{verdict.last:.2f}"
    unigram = board.start.unigram_loss
    beside = "" if unigram is None else f"; a unigram model of the same text: {unigram:.2f}"
    rounds = board.last.round if board.last else 0
    return f"held-out loss {first} -> {last} after {rounds} rounds and {board.tokens:,} tokens{beside}"


def _sample(folder: Path, crew: Crew) -> list[str]:
    crew.start("sample", "fedgpt2", (*_SAMPLE, "--run.dir", str(folder)))
    if crew.wait("sample", _SAMPLE_SECONDS) != 0:
        return [f"no sample: {crew.last_words('sample') or 'it took too long'}"]
    text = crew.log("sample").read_text(encoding="utf-8").strip()
    return ["it says:", *(f"    {line}" for line in text.splitlines())]


def _hostile(board: Board, cast: Cast) -> list[str]:
    account = board.miners.get(cast.hostile_axon or "")
    if account is None:
        return []
    reasons = ", ".join(f"{reason} {times}x" for reason, times in account.reasons.items())
    rounds, admitted = sum(account.statuses.values()), account.statuses["admitted"]
    line = f"hostile miner {account.axon}: refused in {account.statuses['refused']} of {rounds} rounds: {reasons}"
    if not admitted:
        return [line]
    weight, usual = _weight([account]), _weight(_honest(board, cast))
    lies = " and ".join(name for name in CYCLE if name in ADMISSIBLE)
    return [line, f"    admitted in {admitted}, by {lies}, with weight {weight:.3f} (an honest miner's: {usual:.3f})"]


def _whereabouts(folder: Path) -> list[str]:
    return [f"the run lies in {folder}: rounds.jsonl, ledger.sqlite, checkpoints/, logs/"]
