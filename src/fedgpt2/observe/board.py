"""What a watcher of a run remembers: the losses so far, and every miner's account. Pure, no clock, no terminal."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedgpt2.observe.rows import Facts, MinerRow, RoundRow, read_facts, read_row

__all__ = ["Board", "MinerStats", "PhaseTimes", "Recorder"]

_NOTICES = 4


@dataclass
class PhaseTimes:
    """Seconds of the rounds seen, by phase."""

    rounds: int = 0
    total: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Take in a round's, `total` among them."""
        self.rounds += 1
        self.total += seconds.get("total", 0.0)
        for phase, spent in seconds.items():
            if phase != "total":
                self.phases[phase] = self.phases.get(phase, 0.0) + spent


@dataclass
class MinerStats:
    """One axon over the rounds seen."""

    axon: str
    hotkey: str = ""
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    weight: float = 0.0  # summed over the rounds
    last: MinerRow | None = None

    def add(self, row: MinerRow) -> None:
        """Take in its share of one more round."""
        self.hotkey, self.last, self.seconds = row.hotkey, row, row.seconds
        self.statuses[row.status] += 1
        if row.reason is not None:
            self.reasons[row.reason] += 1
        self.tokens += row.tokens
        self.weight += row.weight
        self.bytes_down += row.bytes_down
        self.bytes_up += row.bytes_up


@dataclass
class Board:
    """A run as seen so far."""

    facts: Facts = field(default_factory=Facts)
    last: RoundRow | None = None
    initial: float | None = None  # held-out loss before the first step
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    accounts: dict[str, MinerStats] = field(default_factory=dict)
    tokens: int = 0
    spent: PhaseTimes = field(default_factory=PhaseTimes)
    bytes_down: int = 0
    bytes_up: int = 0
    kept: int = 0  # rounds that left the weights as they were
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=_NOTICES))

    def start(self, facts: Facts) -> None:
        """The run's facts; miners are listed in the order of its axons."""
        self.facts = facts
        for axon in facts.axons:
            self.accounts.setdefault(axon, MinerStats(axon))

    @property
    def seconds(self) -> float:
        """All rounds' together."""
        return self.spent.total

    def add(self, row: RoundRow) -> None:
        """Take in a round."""
        self.last = row
        if row.train_loss is not None:
            self.train.append((row.round, row.train_loss))
        if row.initial_val_loss is not None:
            self.initial = row.initial_val_loss
        if row.val_loss is not None:
            self.held_out.append((row.round, row.val_loss))
        self.tokens += row.tokens
        self.spent.add(row.seconds)
        self.bytes_down += row.bytes.down
        self.bytes_up += row.bytes.up
        self.kept += not row.applied
        for miner in row.miners:
            self.accounts.setdefault(miner.axon, MinerStats(miner.axon)).add(miner)


@dataclass(frozen=True)
class Recorder:
    """An `Observer` that only remembers."""

    board: Board

    def started(self, facts: Mapping[str, object]) -> None:
        """Take in what run this is."""
        self.board.start(read_facts(facts))

    def waiting(self, message: str) -> None:
        """Nothing worth remembering."""

    def round_done(self, row: Mapping[str, object]) -> None:
        """Take in a round."""
        self.board.add(read_row(row))

    def notice(self, line: str) -> None:
        """Keep it for a while."""
        self.board.notices.append(line)

    def finished(self, facts: Mapping[str, object]) -> None:
        """Nothing worth remembering."""
