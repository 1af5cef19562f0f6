"""Check that a miner supports this run."""

from collections.abc import Collection

from fedgpt2.config import ValidatorConfig
from fedgpt2.errors import printable
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.messages import PROTOCOL_VERSION, STRATEGY, Info
from fedgpt2.types import Hotkey

__all__ = ["check_miner"]


def check_miner(config: ValidatorConfig, ledger: Ledger, info: Info, connected: Collection[Hotkey]) -> str | None:
    """Why the run cannot use the miner with this info, beside those `connected`; None if it can.

    Checked before it gets an order: refusing an order that it never offered to take would count against it.
    """
    needs = (
        ("version of the protocol", str(PROTOCOL_VERSION), tuple(map(str, info.versions))),
        ("strategy", STRATEGY, info.strategies),
        ("codec of weights", config.codec.state, info.state_codecs),
        ("codec of gradients", config.codec.gradient, info.gradient_codecs),
    )
    for what, needed, offered in needs:
        if needed not in offered:
            return printable(f"it does not know {what} {needed} (it names {', '.join(offered)[:80] or 'none'})")
    most = config.data.max_slots
    if not ledger.has_slot(Hotkey(info.hotkey), most, connected):
        return f"all {most} slots of this run were given to other miners; another run has new ones"
    return None
