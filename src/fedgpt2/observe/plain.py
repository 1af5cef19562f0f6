"""A line for everything: for pipes, logs and --run.plain."""

from collections import Counter
from collections.abc import Callable, Sequence

from fedgpt2.observe.board import PhaseTimes
from fedgpt2.observe.formatting import count, loss, many, volume
from fedgpt2.observe.observer import RunEnd, RunStart
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord

__all__ = ["Lines", "closing_line", "round_line"]

_LEAST = 0.01  # of a round: shorter phases are not told
_MOST_FAULTS = 8  # that are told one by one


class Lines:
    """An `Observer` that writes lines."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._rounds = 0
        self._times = PhaseTimes()

    def started(self, start: RunStart) -> None:
        """A line about the run, and one with the unigram loss to compare with."""
        self._rounds = start.rounds
        resumed = f", going on after round {start.resumed_after}" if start.resumed_after else ""
        self._write(
            f"run {start.run_dir}: {start.model} ({count(start.parameters)} parameters), text {start.source}, "
            f"{start.aggregation} over {many(len(start.axons), 'miner')}{resumed}"
        )
        if start.unigram_loss is not None:
            self._write(f"a unigram model of the same text has a held-out loss of {loss(start.unigram_loss)}")

    def waiting(self, message: str) -> None:
        """As it is."""
        self._write(message)

    def round_done(self, record: RoundRecord) -> None:
        """`round_line`."""
        self._times.add(record.seconds)
        self._write(round_line(record, self._rounds))

    def notice(self, line: str) -> None:
        """As it is."""
        self._write(line)

    def finished(self, end: RunEnd) -> None:
        """`closing_line`."""
        self._write(closing_line(end, self._times))


def round_line(record: RoundRecord, rounds: int = 0) -> str:
    """A round in one line; `rounds` of the run, 0 when open-ended."""
    of = f"/{rounds}" if rounds else ""
    held_out = f" held-out {loss(record.val_loss)}" if record.val_loss is not None else ""
    admitted = sum(miner.status == "admitted" for miner in record.miners)
    parts = [
        f"round {record.round}{of}",
        f"train {loss(record.train_loss)}{held_out}",
        f"lr {record.lr:.2e}{f' ({record.reason})' if record.reason else ''}"
        if record.applied
        else f"weights kept: {record.reason}",
        f"{admitted}/{len(record.miners)} admitted",
        f"{record.tokens:,} tokens",
        f"{record.seconds.total:.2f} s",
        f"down {volume(record.bytes.down)} up {volume(record.bytes.up)}",
    ]
    return "  ".join(parts + _faults([miner for miner in record.miners if miner.status != "admitted"]))


def closing_line(end: RunEnd, times: PhaseTimes) -> str:
    """Where a run lies and what it took: memory, and of a round the phases, longest first."""
    parts = [f"{many(end.rounds, 'round')} in {end.run_dir}"]
    if end.peak_mb is not None:
        parts.append(f"peak memory {volume(end.peak_mb * 1e6)}")
    if times.total:
        longest = sorted(times.phases.items(), key=lambda phase: -phase[1])
        told = [f"{name} {took / times.rounds:.2f}" for name, took in longest if took >= _LEAST * times.total]
        parts.append(f"{times.total / times.rounds:.2f} s a round: {', '.join(told)}")
    return ", ".join(parts)


def _faults(miners: Sequence[MinerRecord]) -> list[str]:
    """What became of each, or, of many, how many of them each thing became of."""
    if len(miners) <= _MOST_FAULTS:
        return [f"{miner.axon} {_fault(miner)}" for miner in miners]
    return [f"{times} {fault}" for fault, times in Counter(map(_fault, miners)).most_common()]


def _fault(miner: MinerRecord) -> str:
    fault = f" ({miner.fault})" if miner.fault else ""
    return f"{miner.status}: {miner.reason or 'no reason'}{fault}"
