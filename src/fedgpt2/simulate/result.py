"""What came of a simulation, and the observer that collects it."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from fedgpt2.config import SimulationConfig
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.observe.board import Board
from fedgpt2.observe.observer import Observer, RunEnd, RunStart
from fedgpt2.protocol.round_record import RoundRecord
from fedgpt2.ranking.table import Rank
from fedgpt2.simulate.participants import Participants
from fedgpt2.types import Hotkey

__all__ = ["Miner", "Result", "Round", "Scribe"]


@dataclass(frozen=True)
class Round:
    """One round, as far as experiments compare it."""

    round: int
    applied: bool
    reason: str | None
    train_loss: float
    val_loss: float | None  # where it was measured
    hostile_share: float | None  # of the sum of absolute aggregation weights; None where no step was taken
    cosine: float | None  # of the aggregate to the mean of the honest gradients; None where none was formed now
    seconds: float


@dataclass(frozen=True)
class Miner:
    """One miner over the whole run; `weight` is the mean of its aggregation weights, 0 where it had none.

    `pay` is its share of the payout after the last round; None, as are rank and rating, where nobody was ranked.
    """

    hotkey: Hotkey
    hostile: bool
    rank: int | None
    rating: float | None
    weight: float
    pay: float | None = None


@dataclass(frozen=True)
class Result:
    """A simulation that has ended, rounds of earlier starts included; `finished` is False when it was told to stop."""

    config: SimulationConfig
    rounds: tuple[Round, ...]
    miners: tuple[Miner, ...]
    finished: bool
    board: Board  # every miner's account

    @property
    def val_loss(self) -> list[float]:
        """The held-out losses, in order."""
        return [row.val_loss for row in self.rounds if row.val_loss is not None]

    @property
    def final_val_loss(self) -> float | None:
        """The last one; None when none was measured."""
        return self.val_loss[-1] if self.val_loss else None

    @property
    def unigram_loss(self) -> float | None:
        """Held-out loss of a unigram model of the same text; None where fitting one would take long."""
        return self.board.start.unigram_loss

    def document(self) -> dict[str, object]:
        """As `fedgpt2 simulate --json` prints it."""
        return {
            "settings": asdict(self.config),
            "val_loss": self.val_loss,
            "final_val_loss": self.final_val_loss,
            "unigram_loss": self.unigram_loss,
            "miners": [asdict(miner) for miner in self.miners],
            "rounds": [asdict(row) for row in self.rounds],
        }


@dataclass
class Scribe:
    """An `Observer` that writes down what a `Result` needs and tells everything to another one."""

    observer: Observer
    hostile: frozenset[Hotkey]
    cosine: Callable[[], float | None]  # of the aggregate of the round that has just ended
    rounds: list[Round] = field(default_factory=list)
    weights: dict[Hotkey, float] = field(default_factory=dict)  # summed over the rounds
    board: Board = field(default_factory=Board)
    ranks: Mapping[Hotkey, Rank] = field(default_factory=dict)  # after the last round

    def started(self, start: RunStart) -> None:
        """Remember what run this is."""
        self.board.begin(start)
        self.observer.started(start)

    def waiting(self, message: str) -> None:
        """Pass it on."""
        self.observer.waiting(message)

    def recall(self, ledger: Ledger) -> None:
        """Add the rounds of earlier starts from the ledger; the other observer saw them then. Blocking."""
        with contextlib.closing(ledger.reader()) as reader:
            for record in reader.records():
                self._add(record, None)

    def round_done(self, record: RoundRecord) -> None:
        """Add the round."""
        self._add(record, self.cosine())
        self.observer.round_done(record)

    def _add(self, record: RoundRecord, cosine: float | None) -> None:
        self.board.add(record)
        for miner in record.miners:
            self.weights[miner.hotkey] = self.weights.get(miner.hotkey, 0.0) + miner.weight
        self.rounds.append(
            Round(
                round=record.round,
                applied=record.applied,
                reason=record.reason,
                train_loss=record.train_loss,
                val_loss=record.val_loss,
                hostile_share=self._hostile_share(record),
                cosine=cosine,
                seconds=record.seconds.total,
            )
        )

    def notice(self, line: str) -> None:
        """Pass it on."""
        self.observer.notice(line)

    def finished(self, end: RunEnd) -> None:
        """Pass it on."""
        self.observer.finished(end)

    def result(self, config: SimulationConfig, participants: Participants, *, finished: bool) -> Result:
        """What has been written down."""
        count = max(1, len(self.rounds))
        miners = [
            self._miner(hotkey, i in participants.hostile, self.weights.get(hotkey, 0.0) / count)
            for i, hotkey in enumerate(participants.hotkeys)
        ]
        return Result(config, tuple(self.rounds), tuple(miners), finished, self.board)

    def _miner(self, hotkey: Hotkey, hostile: bool, weight: float) -> Miner:
        line = self.ranks.get(hotkey)
        rank, rating, pay = (line.rank, line.rating, line.weight) if line else (None, None, None)
        return Miner(hotkey, hostile, rank, rating, weight, pay)

    def _hostile_share(self, record: RoundRecord) -> float | None:
        total = sum(abs(miner.weight) for miner in record.miners)
        theirs = sum(abs(miner.weight) for miner in record.miners if miner.hotkey in self.hostile)
        return theirs / total if total else None
