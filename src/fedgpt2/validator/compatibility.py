"""Which of the miners that answer a run can use."""

from collections.abc import Collection

from fedgpt2.config import ValidatorConfig
from fedgpt2.errors import printable
from fedgpt2.ledger.ledger import Ledger
from fedgpt2.protocol.messages import PROTOCOL_VERSION, STRATEGY, Info
from fedgpt2.types import Hotkey

__all__ = ["check_miner"]


def check_miner(config: ValidatorConfig, ledger: Ledger, info: Info, seated: Collection[Hotkey]) -> str | None:
    """Why the miner that says this of itself is given no work; None if it may have some, beside all who are `seated`.

    Asked before it gets an order: one that refuses what it never offered would be blamed for it, round after round.
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
    if not ledger.has_slot(Hotkey(info.hotkey), most, seated):
        return f"all {most} slots of this run were given to other miners; another run has new ones"
    return None
