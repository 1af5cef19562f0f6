"""The receipts of a round: a pure function of its record."""

from fedgpt2.errors import Culprit
from fedgpt2.protocol.messages import Ranked, Receipt
from fedgpt2.protocol.round_record import MinerRecord, RoundRecord
from fedgpt2.types import Digest, Hotkey

__all__ = ["receipts_of"]


def receipts_of(record: RoundRecord, run_id: str, sender: Hotkey, head: Digest) -> list[Receipt]:
    """A receipt for every miner that was given an order; `head` is the ledger's, with this round in it."""
    return [_receipt(record, miner, run_id, sender, head) for miner in record.miners]


def _receipt(record: RoundRecord, miner: MinerRecord, run_id: str, sender: Hotkey, head: Digest) -> Receipt:
    return Receipt(
        run_id=run_id,
        round=record.round,
        sender=sender,
        receiver=miner.hotkey,
        work_id=miner.work_id,
        status=miner.status,
        reason=miner.reason,
        culprit=Culprit(miner.fault) if miner.fault else None,
        detail=miner.detail or "",
        tokens=miner.tokens if miner.admitted else 0,
        norm=miner.norm,
        weight=miner.weight,
        score=miner.score,
        rating=miner.rating,
        ranking=_ranked(miner),
        windows=record.evidence.picks,
        applied=record.applied,
        model=record.model,
        ledger_head=head,
    )


def _ranked(miner: MinerRecord) -> Ranked | None:
    """How the rating came about; None for a miner that was not ranked."""
    part = miner.ranking
    if part is None or miner.rating is None or miner.sigma is None or miner.verdict is None:
        return None
    return Ranked(
        verdict=miner.verdict,
        keeper=part.keeper,
        score=miner.score,
        raw=part.raw,
        added=part.added,
        own=part.own,
        proven=part.proven,
        grounded=part.grounded,
        place=part.place,
        compared=part.compared,
        rating_before=part.rating_before,
        sigma_before=part.sigma_before,
        rating_after=miner.rating,
        sigma_after=miner.sigma,
        reliability=part.reliability,
        share=part.share,
        trusted=part.trusted,
        weight=miner.pay or 0.0,
    )
