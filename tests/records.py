"""Records of rounds for tests: everything that a test does not name has a plausible value."""

from collections.abc import Sequence

from fedgpt2.protocol.round_record import Bytes, Evidence, MinerRecord, PhaseSeconds, RoundRecord
from fedgpt2.types import Digest, Hotkey, WorkId


def miner_record(hotkey: str = "a", **changes: object) -> MinerRecord:
    """One miner's part; a `reason` makes it a failure by its own fault, unless `fault` or `status` say otherwise."""
    values: dict[str, object] = {
        "hotkey": Hotkey(hotkey),
        "axon": f"axon-{hotkey}",
        "slot": 0,
        "work_id": WorkId(hotkey.encode().hex().rjust(64, "0")[-64:]),
        "status": "admitted",
        "tokens": 1024,
        "seconds": 0.5,
    }
    if changes.get("reason") is not None:
        values |= {"status": "refused", "fault": "MINER"}
    return MinerRecord(**(values | changes))


def round_record(number: int, miners: Sequence[MinerRecord] = (), **changes: object) -> RoundRecord:
    """The record of a round."""
    values: dict[str, object] = {
        "round": number,
        "attempt": 0,
        "parent": Digest("a" * 64),
        "model": Digest("b" * 64),
        "applied": True,
        "train_loss": 10.0,
        "lr": 1e-3,
        "rule": "mean",
        "f": 0,
        "tokens": sum(miner.tokens for miner in miners if miner.admitted),
        "seconds": PhaseSeconds(total=1.5, send=0.1),
        "bytes": Bytes(down=sum(m.bytes_down for m in miners), up=sum(m.bytes_up for m in miners)),
        "miners": tuple(miners),
        "evidence": Evidence(revision=1, rule={}),
    }
    return RoundRecord(**(values | changes))
