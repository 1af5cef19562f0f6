"""Whether a miner supports a run: the protocol, the codecs, a free slot."""

from collections.abc import Collection

from fedgpt2.config import ValidatorConfig
from fedgpt2.errors import printable
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.messages import PROTOCOL_VERSION, STRATEGY, Info
from fedgpt2.types import Hotkey

__all__ = ["check_miner"]


def check_miner(config: ValidatorConfig, ledger: Ledger, info: Info, connected: Collection[Hotkey]) -> str | None:
    """Why the miner cannot take part, by its info and the miners that are `connected`; None if it can.

    Checked before it gets an order: a miner that refuses what it never offered would be blamed for it every round.
    Blocking: it reads the ledger.
    """
    needs = (
        ("protocol version", str(PROTOCOL_VERSION), tuple(map(str, info.versions))),
        ("strategy", STRATEGY, info.strategies),
        ("state codec", config.codec.state, info.state_codecs),
        ("gradient codec", config.codec.gradient, info.gradient_codecs),
    )
    for what, needed, offered in needs:
        if needed not in offered:
            return printable(f"it does not support {what} {needed} (it offers {', '.join(offered)[:80] or 'none'})")
    slots, lease, number = config.data.max_slots, config.data.lease, ledger.last_round() + 1
    if not ledger.has_slot(Hotkey(info.hotkey), number, slots, lease, connected):
        return f"all {slots} slots are leased to other miners; one is free again after {lease} rounds without use"
    return None
