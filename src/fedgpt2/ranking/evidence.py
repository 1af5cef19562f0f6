"""What one round proves of its miners: all that a ranking may rest on, small enough for the ledger.

Every number is what the validator measured itself. Floats are finite and written as the shortest decimal that reads
back to the same bits, so a replay from the ledger computes with the very numbers the live ranking had.

Letters: n contributions, k vectors that anybody could have for free, g the gradient on the scoring windows.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from fedgpt2.config import Ranking

__all__ = [
    "KINDS",
    "Audit",
    "Evidence",
    "Free",
    "MinerEvidence",
    "Products",
    "Trial",
    "as_row",
    "read_evidence",
    "rule_of",
    "rule_row",
]


Kind = Literal["aggregate", "moment", "mean", "update", "score"]
KINDS: tuple[str, ...] = get_args(Kind)


class Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all records of evidence: immutable, strict about unknown fields."""


class MinerEvidence(Record, frozen=True, kw_only=True):
    """What became of one order."""

    hotkey: str
    status: Literal["admitted", "refused", "failed"]
    reason: str | None = None
    fault: str | None = None  # MINER | VALIDATOR | NETWORK, of one not admitted
    digest: str | None = None  # of the contribution's body
    norm: float | None = None
    tokens: int = 0  # assigned
    committed: float | None = None  # seconds after the order at which its signed answer named the digest
    seconds: float = 0.0  # at which the gradient was here
    cluster: int | None = None  # miners of one number sent one computation
    weight: float = 0.0  # in the aggregate

    def __post_init__(self) -> None:
        _check_finite(self.hotkey, [self.norm or 0.0, self.committed or 0.0, self.seconds, self.weight])

    @property
    def admitted(self) -> bool:
        """Whether its contribution counted."""
        return self.status == "admitted"

    @property
    def at_fault(self) -> bool:
        """Whether it failed, and by its own fault."""
        return not self.admitted and self.fault == "MINER"


class Free(Record, frozen=True, kw_only=True):
    """A vector that costs no work; `age` in steps taken, 1 the last one, 0 for what has none.

    aggregate: what the optimizer was given; moment: its first moment; mean: a running mean of aggregates; update: a
    change of the weights; score: an earlier scoring gradient, or a mean of such.
    """

    kind: Kind
    age: int = 0


class Products(Record, frozen=True, kw_only=True):
    """Inner products of g, the admitted contributions x and the free vectors b.

    `gram` and `free_gram` are lower triangles, row by row, the diagonal included; `gram` is None where there were too
    many contributions to keep it.
    """

    miners: tuple[str, ...]  # hotkeys of the x, in the order of what follows
    free: tuple[Free, ...]
    gradient_norm: float
    gradient: tuple[float, ...]  # [n] <g, x_i>
    gradient_free: tuple[float, ...]  # [k] <g, b_k>
    contributions_free: tuple[tuple[float, ...], ...]  # [n, k] <x_i, b_k>
    free_gram: tuple[tuple[float, ...], ...]  # [k, 1…k]
    gram: tuple[tuple[float, ...], ...] | None = None  # [n, 1…n]

    def __post_init__(self) -> None:
        n, k = len(self.miners), len(self.free)
        shapes = [len(self.gradient), len(self.gradient_free), *map(len, self.contributions_free)]
        if shapes != [n, k, *[k] * n] or _triangle(self.free_gram) != k or _triangle(self.gram or ()) not in (0, n):
            raise ValueError(f"inner products of {n} contributions and {k} free vectors have other shapes")
        if len(set(self.miners)) != n:
            raise ValueError("a miner has two contributions")
        rows: list[Iterable[float]] = [[self.gradient_norm], self.gradient, self.gradient_free]
        rows += [*self.contributions_free, *self.free_gram, *(self.gram or ())]
        _check_finite("inner products", [value for row in rows for value in row])


class Trial(Record, frozen=True, kw_only=True):
    """A step along one miner's contribution alone, tried out: the loss on the first of the scoring windows.

    `before` and `after` it, nats a token; `ranking.trial` says how many tokens.
    """

    hotkey: str
    before: float
    after: float

    def __post_init__(self) -> None:
        _check_finite(self.hotkey, [self.before, self.after])


class Audit(Record, frozen=True, kw_only=True):
    """A short step along one miner's contribution, tried on its own text: the loss there before and after it."""

    hotkey: str
    windows: tuple[int, ...]  # which of those assigned
    start: int = 0  # token at which the part of each begins, where not all of it was tried
    before: float  # nats a token
    after: float
    length: float  # of the step

    def __post_init__(self) -> None:
        _check_finite(self.hotkey, [self.before, self.after, self.length])


class Evidence(Record, frozen=True, kw_only=True):
    """One round. `rule` holds the settings (config.Ranking) that its live ratings were made with.

    `revision` is that of the rule itself, ranking.table.REVISION: under another, equal settings rank otherwise.
    """

    v: Literal[1] = 1
    revision: int = 1
    round: int
    applied: bool
    reason: str | None = None  # why the weights stayed as they were
    rule: dict[str, float | int | str]
    picks: tuple[tuple[int, int], ...] = ()  # page and window of each scoring window, in the score pool
    miners: tuple[MinerEvidence, ...]
    products: Products | None = None
    trials: tuple[Trial, ...] = ()
    audits: tuple[Audit, ...] = ()

    def __post_init__(self) -> None:
        admitted = {miner.hotkey for miner in self.miners if miner.admitted}
        if len({miner.hotkey for miner in self.miners}) != len(self.miners):
            raise ValueError(f"round {self.round} names a miner twice")
        tried = {*(trial.hotkey for trial in self.trials), *(audit.hotkey for audit in self.audits)}
        measured = {*(self.products.miners if self.products else ()), *tried}
        if not measured <= admitted:
            raise ValueError(f"round {self.round} measures a contribution that was not admitted")
        if len({audit.hotkey for audit in self.audits}) != len(self.audits):
            raise ValueError(f"round {self.round} audits a miner twice")


def as_row(record: Record) -> dict[str, object]:
    """The record as plain values for JSON, what `read_evidence` makes it from again, bit by bit."""
    row: dict[str, object] = msgspec.to_builtins(record)
    return row


def read_evidence(row: Mapping[str, object] | str | bytes) -> Evidence:
    """Evidence from its plain values or its JSON. Raises msgspec.DecodeError for anything else."""
    if isinstance(row, str | bytes):
        return msgspec.json.decode(row, type=Evidence)
    return msgspec.convert(row, Evidence)


def rule_of(evidence: Evidence, changes: Mapping[str, object] | None = None) -> Ranking:
    """The settings a round was ranked by, with `changes`. A setting it does not name has its default.

    Raises msgspec.ValidationError for a value of the wrong type.
    """
    return msgspec.convert({**evidence.rule, **(changes or {})}, Ranking)


def rule_row(rule: Ranking) -> dict[str, float | int | str]:
    """The settings as evidence names them."""
    return asdict(rule)


def _triangle(rows: tuple[tuple[float, ...], ...]) -> int:
    """Rows of a lower triangle; -1 for another shape."""
    return len(rows) if all(len(row) == i + 1 for i, row in enumerate(rows)) else -1


def _check_finite(what: str, values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{what}: holds NaN or Inf")
