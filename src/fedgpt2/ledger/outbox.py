"""Receipts that are committed and have not arrived: what a link that is down, or a kill, can delay and not lose.

A receipt is written by the transaction of its round and taken out when its miner has said that it has it. The taking
out waits for the next transaction, so a validator that is killed in between sends it again: it arrives at least once.
"""

from collections.abc import Iterable

from fedgpt2.protocol.messages import Receipt

__all__ = ["KEPT", "Outbox"]

KEPT = 100  # receipts of one miner; of one that never takes any the oldest go


class Outbox:
    """What is still to be sent to each miner, and what has arrived since the ledger last noted it."""

    def __init__(self, waiting: Iterable[Receipt] = ()) -> None:
        self._waiting: dict[str, dict[str, Receipt]] = {}  # hotkey -> work_id -> receipt, oldest first
        self._gone: set[str] = set()
        self._full: set[str] = set()  # miners for whom there was no more room
        self._told: set[str] = set()  # those of them that were told of
        self.add(waiting)

    def add(self, receipts: Iterable[Receipt]) -> None:
        """Take in receipts that have just been committed."""
        for receipt in receipts:
            mine = self._waiting.setdefault(receipt.receiver, {})
            mine[receipt.work_id] = receipt
            if len(mine) > KEPT:
                self.arrived(next(iter(mine.values())))
                self._full.add(receipt.receiver)

    def full(self) -> list[str]:
        """Miners whose oldest receipts go from now on, each told of once."""
        new = sorted(self._full - self._told)
        self._told.update(new)
        return new

    def waiting(self, hotkey: str) -> list[Receipt]:
        """What a miner has not got yet, oldest first."""
        return list(self._waiting.get(hotkey, {}).values())

    def arrived(self, receipt: Receipt) -> None:
        """Take a receipt out: its miner has it, or cannot read it."""
        if self._waiting.get(receipt.receiver, {}).pop(receipt.work_id, None) is not None:
            self._gone.add(receipt.work_id)

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return any(self._waiting.values())

    def gone(self) -> tuple[str, ...]:
        """The work of receipts taken out and not yet noted by the ledger."""
        return tuple(self._gone)

    def noted(self, gone: Iterable[str]) -> None:
        """Forget these: the ledger has."""
        self._gone.difference_update(gone)
