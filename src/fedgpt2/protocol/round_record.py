"""The record of one round: what happened, what was measured, and what became of each miner.

The round writes it. The ledger, rounds.jsonl, the ranking, receipts, the console and the simulator read it. Every fact
stands in it once. Floats are finite and encoded as the shortest decimal that reads back to the same bits, so a replay
computes with the numbers of the live run.

Letters: n contributions, k baseline vectors (what any miner could send without work), g the gradient on the scoring
windows.
"""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from fedgpt2.types import Digest, Hotkey, WorkId

__all__ = [
    "Audit",
    "BaselineVector",
    "Bytes",
    "Evidence",
    "GateRecord",
    "MinerRanking",
    "MinerRecord",
    "PhaseSeconds",
    "Products",
    "RoundRecord",
    "decode_record",
    "encode_record",
]

Status = Literal["admitted", "refused", "failed"]


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records: immutable, strict about unknown fields."""


class Bytes(Record, frozen=True, kw_only=True):
    """Bytes sent to the miners (down) and received from them (up)."""

    down: int = 0
    up: int = 0


class PhaseSeconds(Record, frozen=True, kw_only=True):
    """Seconds of each phase by the validator's clock; `total` is the whole round."""

    total: float = 0.0
    snapshot: float = 0.0
    send: float = 0.0
    wait: float = 0.0
    receive: float = 0.0
    admit: float = 0.0
    rank: float = 0.0
    aggregate: float = 0.0
    gate: float = 0.0
    step: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0


class GateRecord(Record, frozen=True, kw_only=True):
    """What the loss gate measured, nats a token, and the share of the step it accepted."""

    before: float
    after: float | None  # at the last share tried; None where it was not finite
    share: float


class MinerRanking(Record, frozen=True, kw_only=True):
    """How a miner's rating came about in this round; the parts that receipts quote."""

    keeper: Hotkey | None = None  # for a copy: the hotkey that committed to the gradient first
    raw: float | None = None  # <g, x> / |x|, nats a token for a step of length 1
    added: float | None = None  # <g, x'> / |x|, x' the part outside the span of the baseline vectors
    own: float | None = None  # |x'| / |x|
    proven: float | None = None  # average contribution of its own so far, in units of |g|
    grounded: float | None = None  # average audit result so far, relative to the other miners
    place: int | None = None  # 1 is the best of those compared
    compared: int = 0  # miners compared in this round
    rating_before: float
    sigma_before: float
    reliability: float
    share: float
    trusted: float = 1.0


class MinerRecord(Record, frozen=True, kw_only=True):
    """One order and what became of it."""

    hotkey: Hotkey
    axon: str
    slot: int
    work_id: WorkId
    status: Status
    fault: str | None = None  # MINER | VALIDATOR | NETWORK, unless admitted
    reason: str | None = None
    detail: str | None = None
    claimed_loss: float | None = None  # the miner's own word
    tokens: int  # assigned
    seconds: float  # from the order until the last byte
    committed: float | None = None  # from the order until its signed contribution named the digest
    bytes_down: int = 0
    bytes_up: int = 0
    digest: Digest | None = None  # of the contribution's body
    norm: float | None = None
    cluster: int | None = None  # miners with one number sent the same computation
    weight: float = 0.0  # in the applied aggregate
    rank: int | None = None
    score: float | None = None
    rating: float | None = None  # after the round
    sigma: float | None = None
    pay: float | None = None  # share of the payout
    verdict: str | None = None  # own | copy | replay | fault | excused | unheard
    ranking: MinerRanking | None = None

    def __post_init__(self) -> None:
        values = [self.norm, self.committed, self.seconds, self.weight, self.score, self.rating, self.sigma, self.pay]
        _check_finite(self.hotkey, [value for value in values if value is not None])

    @property
    def admitted(self) -> bool:
        """Whether the contribution was admitted."""
        return self.status == "admitted"

    @property
    def at_fault(self) -> bool:
        """Whether the miner did not deliver, by its own fault."""
        return not self.admitted and self.fault == "MINER"


class BaselineVector(Record, frozen=True, kw_only=True):
    """A vector that any miner could send without work.

    aggregate: what the optimizer was given `age` steps ago (1 is the last step); moment: its momentum, age 0.
    """

    kind: str
    age: int = 0


class Products(Record, frozen=True, kw_only=True):
    """Inner products of g, the admitted contributions x and the baseline vectors b."""

    miners: tuple[Hotkey, ...]  # of the contributions, in the order of the rows below
    baseline: tuple[BaselineVector, ...]
    gradient_norm: float
    gradient: tuple[float, ...]  # [n] <g, x_i>
    gradient_baseline: tuple[float, ...]  # [k] <g, b_k>
    contributions_baseline: tuple[tuple[float, ...], ...]  # [n, k] <x_i, b_k>
    baseline_gram: tuple[tuple[float, ...], ...]  # [k, 1…k], the lower triangle with the diagonal

    def __post_init__(self) -> None:
        n, k = len(self.miners), len(self.baseline)
        shapes = [len(self.gradient), len(self.gradient_baseline), *map(len, self.contributions_baseline)]
        if shapes != [n, k, *[k] * n] or [len(row) for row in self.baseline_gram] != [*range(1, k + 1)]:
            raise ValueError(f"inner products of {n} contributions and {k} baseline vectors have other shapes")
        if len(set(self.miners)) != n:
            raise ValueError("a miner has two contributions")
        rows: list[Iterable[float]] = [[self.gradient_norm], self.gradient, self.gradient_baseline]
        rows += [*self.contributions_baseline, *self.baseline_gram]
        _check_finite("inner products", [value for row in rows for value in row])


class Audit(Record, frozen=True, kw_only=True):
    """The effect of one contribution on the miner's own assigned text.

    `slope` is <h, x> / |x|, nats a token for a step of length 1, where h is the gradient on that text.
    """

    hotkey: Hotkey
    windows: tuple[int, ...]  # indices among those assigned
    start: int = 0  # first token of the part used, where a window is cut
    slope: float

    def __post_init__(self) -> None:
        _check_finite(self.hotkey, [self.slope])


class Evidence(Record, frozen=True, kw_only=True):
    """What the ranking of a round rests on, beside the miners' records.

    `rule` holds the settings (config.Ranking) of the live rating; `revision` is that of the rule itself
    (ranking.table.REVISION): under another revision equal settings rank otherwise.
    """

    revision: int
    rule: dict[str, float | int | str]
    picks: tuple[tuple[int, int], ...] = ()  # page and window of each window of the score pool that was used
    products: Products | None = None
    audits: tuple[Audit, ...] = ()


class RoundRecord(Record, frozen=True, kw_only=True):
    """One committed round; its JSON is the ledger's entry and the line of rounds.jsonl."""

    round: int
    attempt: int
    parent: Digest  # model before the round
    model: Digest  # model after it
    applied: bool
    reason: str | None = None  # why the weights were kept, or why only part of the step was taken
    train_loss: float
    val_loss: float | None = None
    initial_val_loss: float | None = None  # before the first step
    lr: float
    norm: float | None = None  # of the aggregate, before clipping
    rule: str
    f: int  # hostile miners the rule tolerated
    gate: GateRecord | None = None
    tokens: int  # assigned to admitted miners
    seconds: PhaseSeconds
    bytes: Bytes
    miners: tuple[MinerRecord, ...]
    evidence: Evidence

    def __post_init__(self) -> None:
        names = {miner.hotkey for miner in self.miners}
        admitted = {miner.hotkey for miner in self.miners if miner.admitted}
        if len(names) != len(self.miners):
            raise ValueError(f"round {self.round} names a miner twice")
        audited = [audit.hotkey for audit in self.evidence.audits]
        if len(set(audited)) != len(audited):
            raise ValueError(f"round {self.round} audits a miner twice")
        if not {*(self.evidence.products.miners if self.evidence.products else ()), *audited} <= admitted:
            raise ValueError(f"round {self.round} measures a contribution that was not admitted")


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RoundRecord)


def encode_record(record: RoundRecord) -> bytes:
    """JSON of a record, fields in the order of the class."""
    return _encoder.encode(record)


def decode_record(body: bytes | str) -> RoundRecord:
    """The record that `encode_record` wrote. Raises msgspec.DecodeError (ValidationError for an invalid record)."""
    return _decoder.decode(body)


def _check_finite(what: str, values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{what}: holds NaN or Inf")
