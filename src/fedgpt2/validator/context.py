"""What every round of a run works with, built once and passed in."""

from dataclasses import dataclass, field

from fedgpt2.config import ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.tokens import Tokens
from fedgpt2.event_loop import Stop
from fedgpt2.identity.signing import Signer
from fedgpt2.ranking.table import Table
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.run_directory import RunDirectory
from fedgpt2.validator.suspension import Suspensions
from fedgpt2.validator.training import Training

__all__ = ["RunContext", "Standings"]


@dataclass
class Standings:
    """The ranking after the last round; the only value of a context that rounds replace."""

    table: Table = field(default_factory=Table)
    reranked: int = 0  # rounds of the ledger that another revision of the rule had ranked


@dataclass(frozen=True)
class RunContext:
    """The parts of a running validator."""

    config: ValidatorConfig
    directory: RunDirectory
    training: Training
    corpus: Corpus
    orders: OrderBook
    collector: Collector
    report: Tokens  # held-out windows of val_loss, uint16 [n, seq_len + 1]
    stop: Stop = field(default_factory=Stop)
    suspensions: Suspensions = field(default_factory=Suspensions)
    ranking: Standings = field(default_factory=Standings)

    @property
    def signer(self) -> Signer:
        """The validator's key."""
        return self.orders.signer

    @property
    def key(self) -> bytes:
        """The secret evaluation key."""
        return self.directory.key

    @property
    def horizon(self) -> int:
        """Rounds that the learning rate's cosine spans; 0 for none."""
        return self.config.optimizer.horizon or self.config.rounds
