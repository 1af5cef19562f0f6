"""Admission: what a contribution must be before it can touch the model. Pure; refusals are values.

Who could hurt the model, and where it is stopped:

    another party's answer, an old answer, one over other weights     check_contribution (before a byte is fetched)
    other names, shapes or dtypes, a wrong size                       protocol.tensors.read_header (before the data)
    a changed body                                                    its BLAKE3, while receiving
    NaN, Inf, a huge norm                                             check_values
    the same gradient twice                                           admit
    an answer after the deadline                                      the round stops waiting
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
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import Contribution, Order
from fedgpt2.types import WorkId
from fedgpt2.validator.peers import OrderResult

__all__ = ["AdmissionResult", "Status", "admit", "check_contribution", "check_values"]


class Status(StrEnum):
    """What became of a miner's share of a round."""

    ADMITTED = "admitted"
    REFUSED = "refused"  # an answer came and is not accepted
    FAILED = "failed"  # no answer came


@dataclass(frozen=True)
class AdmissionResult:
    """An outcome and what was decided of it; `values` is the gradient, [d] fp32, of an admitted one."""

    outcome: OrderResult
    status: Status
    failure: PeerError | None = None
    values: Tensor | None = None
    norm: float | None = None


def check_contribution(order: Order, work_id: WorkId, contribution: Contribution, header_limit: int) -> None:
    """Check what an answer says of itself against the order it answers. Raises Refused, blamed on the miner."""
    if (contribution.run_id, contribution.round, contribution.work_id) != (order.run_id, order.round, work_id):
        raise _refused(Reason.WRONG_ORDER, f"answers round {contribution.round}, not this order")
    if (contribution.sender, contribution.receiver) != (order.receiver, order.sender):
        raise _refused(Reason.WRONG_RECEIVER, "names another sender or receiver")
    if contribution.parent != order.parent:
        raise _refused(Reason.WRONG_PARENT, f"a gradient over {contribution.parent[:12]}, not {order.parent[:12]}")
    blob = contribution.blob
    if blob.codec not in order.answer_codecs:
        raise _refused(Reason.UNSUPPORTED_CODEC, f"codec {blob.codec[:40]!r} was not offered")
    data = codec.get(blob.codec).data_bytes(order.model.schema())
    if blob.length > order.caps.answer_bytes:
        raise _refused(Reason.TOO_LARGE, f"{blob.length} bytes, the cap is {order.caps.answer_bytes}")
    if not data < blob.length <= data + 8 + header_limit:
        raise _refused(Reason.WRONG_LENGTH, f"{blob.length} bytes cannot hold {data} bytes of tensors")


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


def admit(
    outcomes: Sequence[OrderResult], limits: Limits, lease: Callable[[str, int], memoryview] | None = None
) -> list[AdmissionResult]:
    """Judge every outcome of a round; of equal bodies the one that was named first, by our clock, keeps its place."""
    seen: set[str] = set()
    judged = {i: _judge(outcomes[i], limits, seen, lease) for i in _as_named(outcomes)}
    return [judged[i] for i in range(len(outcomes))]


def _as_named(outcomes: Sequence[OrderResult]) -> list[int]:
    return sorted(range(len(outcomes)), key=lambda i: outcomes[i].traffic.described)


def _judge(outcome: OrderResult, limits: Limits, seen: set[str], lease: Callable[[str, int], memoryview] | None) -> AdmissionResult:
    if outcome.answer is None:
        return AdmissionResult(outcome, Status.REFUSED if outcome.answered else Status.FAILED, outcome.failure)
    answer, schema = outcome.answer, outcome.ticket.order.model.schema()
    try:
        which = codec.get(answer.contribution.blob.codec)
        out = None
        if lease is not None and not (which.exact and answer.layout.canonical):
            size = codec.get("fp32").data_bytes(schema)
            out = torch.frombuffer(lease(f"{outcome.ticket.seat.axon} decoded", size), dtype=torch.float32)
        decoded = which.decode(answer.layout, schema, answer.data, out)
        norm = check_values(FlatState(schema, decoded), limits.gradient_norm)
        digest = answer.contribution.blob.digest
        if digest in seen:
            raise _refused(Reason.DUPLICATE, "the same body as another miner's")
        seen.add(digest)
    except Refused as failure:
        return AdmissionResult(outcome, Status.REFUSED, failure)
    return AdmissionResult(outcome, Status.ADMITTED, None, decoded, norm)


def _refused(reason: Reason, detail: str) -> Refused:
    return Refused(reason, detail, Culprit.MINER)
