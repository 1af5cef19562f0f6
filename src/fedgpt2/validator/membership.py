"""Which of the connected miners get an order, and the slot whose slice of the text each of them trains on."""

from collections.abc import Sequence

from fedgpt2.errors import NoMinersError
from fedgpt2.validator.context import RunContext
from fedgpt2.validator.peers import ConnectedMiner

__all__ = ["assign_slots"]


def assign_slots(ctx: RunContext, connected: Sequence[ConnectedMiner], number: int) -> list[tuple[ConnectedMiner, int]]:
    """The miners of round `number` with their slots, by slot, without suspended ones and those that got no slot.

    A slot is a lease: it is free again when its miner was not connected for `data.lease` rounds. Raises NoMinersError
    where every slot is leased to another miner.
    """
    data, ledger = ctx.config.data, ctx.directory.ledger
    slots = ledger.lease_slots([miner.hotkey for miner in connected], number, data.max_slots, data.lease)
    if connected and not slots:
        raise NoMinersError(f"all {data.max_slots} slots are leased to other miners: raise --data.max_slots")
    seated = [miner for miner in connected if miner.hotkey in slots]
    active = ctx.suspensions.active(seated, number, ctx.config.round.min_miners)
    return sorted(((miner, slots[miner.hotkey]) for miner in active), key=lambda pair: pair[1])
