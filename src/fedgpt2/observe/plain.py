"""A line for everything: for pipes, logs and --run.plain."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from fedgpt2.observe.board import PhaseTimes
from fedgpt2.observe.formatting import count, loss, many, volume
from fedgpt2.observe.rows import Closing, MinerRow, RoundRow, read_closing, read_facts, read_row

__all__ = ["Lines", "closing_line", "round_line"]

_LEAST = 0.01  # of a round: shorter phases are not told
_MOST_FAULTS = 8  # that are told one by one


class Lines:
    """An `Observer` that writes lines."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._rounds = 0
        self._spent = PhaseTimes()

    def started(self, facts: Mapping[str, object]) -> None:
        """One line of what is about to happen, one of the yardstick."""
        known = read_facts(facts)
        self._rounds = known.rounds
        resumed = f", going on after round {known.resumed_after}" if known.resumed_after else ""
        self._write(
            f"run {known.run_dir}: {known.model} ({count(known.parameters)} parameters), text {known.source}, "
            f"{known.aggregation} over {many(len(known.axons), 'miner')}{resumed}"
        )
        if known.unigram_loss is not None:
            self._write(f"a unigram model of the same text has a held-out loss of {loss(known.unigram_loss)}")

    def waiting(self, message: str) -> None:
        """As it is."""
        self._write(message)

    def round_done(self, row: Mapping[str, object]) -> None:
        """`round_line`."""
        known = read_row(row)
        self._spent.add(known.seconds)
        self._write(round_line(known, self._rounds))

    def notice(self, line: str) -> None:
        """As it is."""
        self._write(line)

    def finished(self, facts: Mapping[str, object]) -> None:
        """`closing_line`."""
        self._write(closing_line(read_closing(facts), self._spent))


def round_line(row: RoundRow, rounds: int = 0) -> str:
    """A round in one line; `rounds` of the run, 0 when open-ended."""
    of = f"/{rounds}" if rounds else ""
    held_out = f" held-out {loss(row.val_loss)}" if row.val_loss is not None else ""
    admitted = sum(miner.status == "admitted" for miner in row.miners)
    parts = [
        f"round {row.round}{of}",
        f"train {loss(row.train_loss)}{held_out}",
        f"lr {row.lr:.2e}{f' ({row.reason})' if row.reason else ''}" if row.applied else f"weights kept: {row.reason}",
        f"{admitted}/{len(row.miners)} admitted",
        f"{row.tokens:,} tokens",
        f"{row.seconds.get('total', 0.0):.2f} s",
        f"down {volume(row.bytes.down)} up {volume(row.bytes.up)}",
    ]
    return "  ".join(parts + _faults([miner for miner in row.miners if miner.status != "admitted"]))


def closing_line(known: Closing, spent: PhaseTimes) -> str:
    """Where a run lies and what it took: memory, and of a round the phases, longest first."""
    parts = [f"{many(known.rounds, 'round')} in {known.run_dir}"]
    if known.peak_mb is not None:
        parts.append(f"peak memory {volume(known.peak_mb * 1e6)}")
    if spent.total:
        longest = sorted(spent.phases.items(), key=lambda phase: -phase[1])
        told = [f"{name} {took / spent.rounds:.2f}" for name, took in longest if took >= _LEAST * spent.total]
        parts.append(f"{spent.total / spent.rounds:.2f} s a round: {', '.join(told)}")
    return ", ".join(parts)


def _faults(miners: Sequence[MinerRow]) -> list[str]:
    """What became of each, or, of many, how many of them each thing became of."""
    if len(miners) <= _MOST_FAULTS:
        return [f"{miner.axon} {_fault(miner)}" for miner in miners]
    return [f"{times} {fault}" for fault, times in Counter(map(_fault, miners)).most_common()]


def _fault(miner: MinerRow) -> str:
    fault = f" ({miner.fault})" if miner.fault else ""
    return f"{miner.status}: {miner.reason or 'no reason'}{fault}"
