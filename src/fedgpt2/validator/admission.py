"""Admission: what a contribution must be before it can touch the model. Pure; refusals are values.

Who could hurt the model, and where it is stopped:

    another miner's answer, an old one, one over other weights     link.receive.check_contribution, before the body
    other names, shapes or dtypes, a wrong size                    link.receive, from the header, before the data
    a changed body                                                 its BLAKE3 digest (link.blobs), while receiving
    NaN, Inf, a huge norm                                          check_values
    the same gradient twice                                        admit
    an answer after the deadline                                   collector: the round does not wait for it
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from fedgpt2 import codec
from fedgpt2.config import Limits
from fedgpt2.errors import Culprit, PeerError, Reason, Refused
from fedgpt2.ledger.ledger import Admission
from fedgpt2.link.base import OrderResult, ReceivedContribution
from fedgpt2.model.state import FlatState
from fedgpt2.types import Digest, Schema

__all__ = ["AdmissionResult", "Status", "admissions", "admit", "check_values"]


Lease = Callable[[str, int], memoryview]  # owner, size in bytes -> buffer


class Status(StrEnum):
    """What became of a miner's order."""

    ADMITTED = "admitted"
    REFUSED = "refused"  # a contribution arrived and is not accepted
    FAILED = "failed"  # no contribution arrived


@dataclass(frozen=True)
class AdmissionResult:
    """An order's result and what was decided; `values` is the gradient, [d] fp32, of an admitted contribution."""

    result: OrderResult
    status: Status
    failure: PeerError | None = None
    values: Tensor | None = None
    norm: float | None = None


def check_values(values: FlatState, largest_norm: float) -> float:
    """Norm of a gradient, if it is finite and within bounds. Raises Refused(non_finite | norm_bound).

    The norm is summed in float64, where fp32 values cannot overflow: it is finite if and only if they all are.
    """
    norm = values.norm()
    if not math.isfinite(norm):
        raise _refused(Reason.NON_FINITE, "holds NaN or Inf")
    if norm > largest_norm:
        raise _refused(Reason.NORM_BOUND, f"norm {norm:.3g}, the bound is {largest_norm:g}")
    return norm


def admit(results: Sequence[OrderResult], limits: Limits, lease: Lease) -> list[AdmissionResult]:
    """Judge every result of a round; of equal bodies the one whose digest was named first is admitted.

    `lease` (owner, bytes -> buffer) gives room for values that have to be decoded.
    """
    seen: set[str] = set()
    judged = {i: _judge(results[i], limits, seen, lease) for i in _as_named(results)}
    return [judged[i] for i in range(len(results))]


def admissions(results: Sequence[AdmissionResult]) -> list[Admission]:
    """The admitted set, as the ledger commits it before the step."""
    return [
        Admission(
            each.result.issued.miner.hotkey,
            each.result.issued.work_id,
            Digest(each.result.received.contribution.blob.digest),
            each.result.issued.tokens,
        )
        for each in results
        if each.status is Status.ADMITTED and each.result.received is not None
    ]


def _as_named(results: Sequence[OrderResult]) -> list[int]:
    return sorted(range(len(results)), key=lambda i: results[i].traffic.described)


def _judge(result: OrderResult, limits: Limits, seen: set[str], lease: Lease) -> AdmissionResult:
    if result.received is None:
        return AdmissionResult(result, Status.REFUSED if result.answered else Status.FAILED, result.failure)
    received, schema = result.received, result.issued.order.model.schema()
    try:
        decoded = _decoded(result.issued.miner.axon, received, schema, lease)
        norm = check_values(FlatState(schema, decoded), limits.gradient_norm)
        digest = received.contribution.blob.digest
        if digest in seen:
            raise _refused(Reason.DUPLICATE, "the same body as another miner's")
        seen.add(digest)
    except Refused as failure:
        return AdmissionResult(result, Status.REFUSED, failure)
    return AdmissionResult(result, Status.ADMITTED, None, decoded, norm)


def _decoded(axon: str, received: ReceivedContribution, schema: Schema, lease: Lease) -> Tensor:
    """The values, [d] fp32: a view of the received data where that holds them, else decoded into a leased buffer."""
    which = codec.get(received.contribution.blob.codec)
    if (values := which.view(received.layout, received.data)) is not None:
        return values
    _, size = codec.get("fp32").size_bounds(schema)
    out = torch.frombuffer(lease(f"{axon} decoded", size), dtype=torch.float32)
    return which.decode(received.layout, schema, received.data, out)


def _refused(reason: Reason, detail: str) -> Refused:
    return Refused(reason, detail, Culprit.MINER)
