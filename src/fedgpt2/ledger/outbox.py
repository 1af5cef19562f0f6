"""Receipts that are committed and have not arrived: what a link that is down, or a kill, can delay and not lose.

A receipt is written by the transaction of its round and taken out once its miner has it. The taking out waits for the
next transaction, so a validator that is killed in between sends it again: a receipt arrives at least once.
"""

from collections.abc import Iterable

from fedgpt2.protocol.messages import Receipt

__all__ = ["KEPT", "Outbox"]

KEPT = 1000  # receipts of one miner; of one that never takes any the oldest go


class Outbox:
    """What is still to be sent to each miner, and what has arrived since the ledger last noted it."""

    def __init__(self, waiting: Iterable[Receipt] = ()) -> None:
        self._waiting: dict[str, dict[str, Receipt]] = {}  # hotkey -> work_id -> receipt, oldest first
        self._gone: list[str] = []
        self.add(waiting)

    def add(self, receipts: Iterable[Receipt]) -> None:
        """Take in receipts that have just been committed."""
        for receipt in receipts:
            mine = self._waiting.setdefault(receipt.receiver, {})
            mine[receipt.work_id] = receipt
            if len(mine) > KEPT:
                self.arrived(next(iter(mine.values())))

    def waiting(self, hotkey: str) -> list[Receipt]:
        """What a miner has not got yet, oldest first."""
        return list(self._waiting.get(hotkey, {}).values())

    def arrived(self, receipt: Receipt) -> None:
        """Take a receipt out: its miner has it, or will never take it."""
        if self._waiting.get(receipt.receiver, {}).pop(receipt.work_id, None) is not None:
            self._gone.append(receipt.work_id)

    def gone(self) -> tuple[str, ...]:
        """The work of receipts taken out and not yet noted by the ledger."""
        return tuple(self._gone)

    def noted(self, gone: Iterable[str]) -> None:
        """Forget these: the ledger has."""
        told = set(gone)
        self._gone = [work_id for work_id in self._gone if work_id not in told]
