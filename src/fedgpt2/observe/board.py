"""The state of a run as shown: the losses so far and each miner's totals. Pure; no clock, no terminal."""

from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec

from fedgpt2.observe.observer import RunEnd, RunStart
from fedgpt2.protocol.round_record import MinerRecord, PhaseSeconds, RoundRecord

__all__ = ["Board", "MinerStats", "PhaseTimes", "Recorder"]

_NOTICES = 4


@dataclass
class PhaseTimes:
    """Seconds of the rounds seen, by phase."""

    rounds: int = 0
    total: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: PhaseSeconds) -> None:
        """Add a round's."""
        self.rounds += 1
        self.total += seconds.total
        for phase, spent in msgspec.structs.asdict(seconds).items():
            if phase != "total":
                self.phases[phase] = self.phases.get(phase, 0.0) + spent


@dataclass
class MinerStats:
    """One axon over the rounds seen."""

    axon: str
    hotkey: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    tokens: int = 0  # of admitted contributions
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    weight: float = 0.0  # summed over the rounds
    last: MinerRecord | None = None

    def add(self, record: MinerRecord) -> None:
        """Add its part of one more round."""
        self.hotkey, self.last, self.seconds = record.hotkey, record, record.seconds
        self.statuses[record.status] += 1
        if record.reason is not None:
            self.reasons[record.reason] += 1
        self.tokens += record.tokens if record.admitted else 0
        self.weight += record.weight
        self.bytes_down += record.bytes_down
        self.bytes_up += record.bytes_up


@dataclass
class Board:
    """A run as seen so far."""

    start: RunStart = field(default_factory=RunStart)
    last: RoundRecord | None = None
    initial: float | None = None  # held-out loss before the first step
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    miners: dict[str, MinerStats] = field(default_factory=dict)  # by axon
    tokens: int = 0
    times: PhaseTimes = field(default_factory=PhaseTimes)
    bytes_down: int = 0
    bytes_up: int = 0
    kept: int = 0  # rounds that kept the weights
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=_NOTICES))

    def begin(self, start: RunStart) -> None:
        """Take in what run this is; miners are listed in the order of its axons."""
        self.start = start
        for axon in start.axons:
            self.miners.setdefault(axon, MinerStats(axon))

    @property
    def seconds(self) -> float:
        """Sum over all rounds."""
        return self.times.total

    def add(self, record: RoundRecord) -> None:
        """Add a round."""
        self.last = record
        self.train.append((record.round, record.train_loss))
        if record.initial_val_loss is not None:
            self.initial = record.initial_val_loss
        if record.val_loss is not None:
            self.held_out.append((record.round, record.val_loss))
        self.tokens += record.tokens
        self.times.add(record.seconds)
        self.bytes_down += record.bytes.down
        self.bytes_up += record.bytes.up
        self.kept += not record.applied
        for miner in record.miners:
            self.miners.setdefault(miner.axon, MinerStats(miner.axon)).add(miner)


@dataclass(frozen=True)
class Recorder:
    """An `Observer` that only remembers."""

    board: Board

    def started(self, start: RunStart) -> None:
        """Remember what run this is."""
        self.board.begin(start)

    def waiting(self, message: str) -> None:
        """Nothing to remember."""

    def round_done(self, record: RoundRecord) -> None:
        """Remember the round."""
        self.board.add(record)

    def notice(self, line: str) -> None:
        """Remember the last few."""
        self.board.notices.append(line)

    def finished(self, end: RunEnd) -> None:
        """Nothing to remember."""
