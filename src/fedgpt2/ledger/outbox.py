"""Receipts that are committed and not delivered yet: an interrupted link or a kill delays them, and loses none.

The transaction of a round writes its receipts; delivered ones are removed by the next transaction. A validator that is
killed in between sends them again, so every receipt arrives at least once. Used on the event loop only.
"""

from collections.abc import Iterable

from fedgpt2.protocol.messages import Receipt
from fedgpt2.types import WorkId

__all__ = ["MAX_WAITING", "Outbox"]

MAX_WAITING = 100  # receipts of one miner; beyond that the oldest are dropped


class Outbox:
    """The receipts still to be sent to each miner, and those delivered since the ledger last noted it."""

    def __init__(self, waiting: Iterable[Receipt] = ()) -> None:
        self._waiting: dict[str, dict[str, Receipt]] = {}  # hotkey -> work_id -> receipt, oldest first
        self._delivered: set[WorkId] = set()
        self._overflowing: set[str] = set()
        self._reported: set[str] = set()
        self.add(waiting)

    def add(self, receipts: Iterable[Receipt]) -> None:
        """Add receipts that were just committed."""
        for receipt in receipts:
            mine = self._waiting.setdefault(receipt.receiver, {})
            mine[receipt.work_id] = receipt
            if len(mine) > MAX_WAITING:
                self.remove(next(iter(mine.values())))
                self._overflowing.add(receipt.receiver)

    def newly_overflowing(self) -> list[str]:
        """Miners that lose their oldest receipts from now on; each is returned once."""
        new = sorted(self._overflowing - self._reported)
        self._reported.update(new)
        return new

    def waiting(self, hotkey: str) -> list[Receipt]:
        """A miner's undelivered receipts, oldest first."""
        return list(self._waiting.get(hotkey, {}).values())

    def remove(self, receipt: Receipt) -> None:
        """Remove a receipt: its miner has it, or cannot read it."""
        if self._waiting.get(receipt.receiver, {}).pop(receipt.work_id, None) is not None:
            self._delivered.add(WorkId(receipt.work_id))

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return any(self._waiting.values())

    def delivered(self) -> tuple[WorkId, ...]:
        """Work whose receipts were removed and that the ledger has not noted."""
        return tuple(self._delivered)

    def forget(self, delivered: Iterable[WorkId]) -> None:
        """Drop these: the ledger has noted them."""
        self._delivered.difference_update(delivered)
