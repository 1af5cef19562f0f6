"""Writing a round's orders: a pure function of the round, the model's digest and who is present.

A restarted validator writes the same bytes, hence the same work_ids, and so finds the answers already computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedgpt2.codec import Codec
from fedgpt2.data.assignment import Assignment as Share
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import EmptyShareError
from fedgpt2.identity.signing import Signer
from fedgpt2.link.base import ConnectedMiner, IssuedOrder
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.digests import work_id
from fedgpt2.protocol.messages import Assignment, BlobRef, Caps, Order
from fedgpt2.types import Digest, ModelShape

__all__ = ["OrderBook"]


@dataclass(frozen=True)
class OrderBook:
    """What every order of a run has in common, and how to write one."""

    signer: Signer
    run_id: str
    model: ModelShape
    corpus: Corpus
    manifest: Blob
    answer_codec: Codec
    windows: int
    budget_seconds: float
    header_bytes: int

    def write(
        self, number: int, attempt: int, parent: Digest, state: BlobRef, chosen: Sequence[tuple[ConnectedMiner, int]]
    ) -> list[IssuedOrder]:
        """One signed order for each (miner, slot) whose pages hold text.

        Raises CorpusError if the text cannot be read, or no slot's pages hold any.
        """
        slots = [slot for _, slot in chosen]
        self.corpus.load(number, slots, self.windows)
        shares = [self._share(number, slot) for slot in slots]
        self.corpus.load_ahead(number, slots, self.windows)
        dealt = [(miner, share) for (miner, _), share in zip(chosen, shares, strict=True) if share is not None]
        if chosen and not dealt:
            raise EmptyShareError(f"round {number}: none of the slots' pages holds text; lower --data.span")
        return [self._issue(number, attempt, parent, state, miner, share) for miner, share in dealt]

    def _share(self, number: int, slot: int) -> Share | None:
        try:
            return self.corpus.assign(number, slot, self.windows)
        except EmptyShareError:
            return None

    def _issue(
        self, number: int, attempt: int, parent: Digest, state: BlobRef, miner: ConnectedMiner, share: Share
    ) -> IssuedOrder:
        order = Order(
            run_id=self.run_id,
            round=number,
            attempt=attempt,
            sender=self.signer.hotkey,
            receiver=miner.hotkey,
            parent=parent,
            model=self.model,
            state=(state,),
            assignment=self._assignment(share),
            answer_codecs=(self.answer_codec.name,),
            caps=Caps(answer_bytes=self.answer_codec.size_bounds(self.model.schema())[1] + self.header_bytes),
            budget_seconds=self.budget_seconds,
        )
        envelope = self.signer.seal("order", order)
        tokens = order.n_windows * self.corpus.manifest.seq_len
        return IssuedOrder(miner, order, envelope, work_id(envelope.payload), tokens)

    def _assignment(self, share: Share) -> Assignment:
        return Assignment(
            manifest=self.manifest.ref.digest,
            manifest_length=self.manifest.ref.length,
            slot=share.slot,
            pages=share.pages,
            windows=share.windows,
        )
