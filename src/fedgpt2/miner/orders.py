"""Whether this miner takes an order on: rules that need the order and nothing else. No I/O.

What needs the manifest or the weights themselves (the pages, the model digest) is checked when they are here:
`fedgpt2.miner.work`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from fedgpt2 import codec
from fedgpt2.codec import Codec
from fedgpt2.config import MinerLimits
from fedgpt2.errors import Reason, Refused
from fedgpt2.protocol.messages import MANIFEST_CODEC, STRATEGY, BlobRef, Order
from fedgpt2.protocol.tensors import PREFIX
from fedgpt2.types import Hotkey, ModelShape, Schema, WorkId

__all__ = [
    "MANIFEST_BYTES",
    "Plan",
    "Taken",
    "answer_codec",
    "check_age",
    "check_order",
    "check_windows",
]

MANIFEST_BYTES = 8 << 20  # RefinedWeb's manifest names 5,534 files in 0.8 MB
_MOST_LAYERS = 1024
_MOST_WIDTH = 1 << 20  # of embedding, context and vocabulary alike
_LONGEST_BUDGET = 86400.0


@dataclass(frozen=True)
class Plan:
    """An order this miner takes on, with what follows from it."""

    order: Order
    work_id: WorkId
    schema: Schema
    state_codec: Codec
    budget_seconds: float  # from acceptance

    @property
    def state(self) -> BlobRef:
        """The model's weights."""
        return self.order.state[0]

    @property
    def manifest(self) -> BlobRef:
        """The manifest of the text, as a blob."""
        assignment = self.order.assignment
        return BlobRef(digest=assignment.manifest, length=assignment.manifest_length, codec=MANIFEST_CODEC)


@dataclass(frozen=True)
class Taken:
    """The newest order taken of one run: what every later one is compared with."""

    age: tuple[int, int]  # (attempt, round)
    work_id: WorkId


def check_order(
    order: Order, work_id: WorkId, *, me: Hotkey, limits: MinerLimits, memory: int, only: ModelShape | None = None
) -> Plan:
    """The plan for an order, if it is for `me`, well-formed and within what this machine can do.

    `memory` is the machine's, in bytes; `only` the one model it works for, if there is one. Raises Refused:
    wrong_receiver, unsupported_strategy, unsupported_model, unsupported_codec, wrong_state, wrong_assignment,
    bad_message or too_large.
    """
    if order.receiver != me:
        raise Refused(Reason.WRONG_RECEIVER, f"the order is for {order.receiver[:60]}")
    if order.strategy != STRATEGY:
        raise Refused(Reason.UNSUPPORTED_STRATEGY, f"{order.strategy[:60]!r}; known here: {STRATEGY}")
    if not isfinite(order.budget_seconds):
        raise Refused(Reason.BAD_MESSAGE, "budget_seconds is not finite")
    _check_shape(order.model, limits)
    if only is not None and order.model != only:
        raise _unsupported(f"a model of {_parameters(order.model)} parameters, --model.preset has {_parameters(only)}")
    schema = order.model.schema()
    state_codec = _state_codec(order, schema, limits)
    _check_memory(schema, state_codec, memory)
    _check_assignment(order, limits)
    budget = min(order.budget_seconds, _LONGEST_BUDGET)
    answer_codec(order, schema)
    return Plan(order, work_id, schema, state_codec, budget)


def check_age(order: Order, work_id: WorkId, newest: Taken | None) -> None:
    """Raise Refused(stale_order) unless the order is newer than `newest`, or is that very order again."""
    if newest is None or order.age > newest.age or work_id == newest.work_id:
        return
    attempt, round_ = newest.age
    raise Refused(
        Reason.STALE_ORDER,
        f"attempt {order.attempt} round {order.round} after attempt {attempt} round {round_} of the same run",
    )


def check_windows(order: Order, seq_len: int) -> None:
    """Raise Refused(wrong_assignment) if windows of `seq_len` tokens do not fit the model."""
    if seq_len > order.model.block_size:
        raise Refused(
            Reason.WRONG_ASSIGNMENT, f"windows of {seq_len} tokens for a model that reads {order.model.block_size}"
        )


def answer_codec(order: Order, schema: Schema) -> Codec:
    """The first codec the order allows that is known here and whose body is within the order's cap.

    Raises Refused: unsupported_codec or too_large.
    """
    known = [codec.get(name) for name in order.answer_codecs if name in codec.CODECS.names]
    if not known:
        raise Refused(
            Reason.UNSUPPORTED_CODEC, f"none of the answer codecs is known here: {', '.join(codec.CODECS.names)}"
        )
    for candidate in known:
        if candidate.longest_body(schema) <= order.caps.answer_bytes:
            return candidate
    raise Refused(Reason.TOO_LARGE, f"no answer fits into caps.answer_bytes {order.caps.answer_bytes}")


def _check_shape(shape: ModelShape, limits: MinerLimits) -> None:
    """Bounds first: until they hold, nothing as large as the schema may be built."""
    sides: Mapping[str, int] = {
        "n_embd": shape.n_embd,
        "block_size": shape.block_size,
        "vocab_size": shape.vocab_size,
    }
    for name, side in sides.items():
        if not 1 <= side <= _MOST_WIDTH:
            raise _unsupported(f"{name} {side} is not between 1 and {_MOST_WIDTH}")
    if not 1 <= shape.n_layer <= _MOST_LAYERS:
        raise _unsupported(f"n_layer {shape.n_layer} is not between 1 and {_MOST_LAYERS}")
    if shape.n_head < 1 or shape.n_embd % shape.n_head:
        raise _unsupported(f"n_embd {shape.n_embd} is not a multiple of n_head {shape.n_head}")
    if shape.vocab_size < ModelShape.vocab_size:
        raise _unsupported(f"vocab_size {shape.vocab_size} is less than the tokenizer's {ModelShape.vocab_size}")
    parameters = _parameters(shape)
    if parameters > limits.model_parameters:
        raise _unsupported(f"{parameters} parameters, --limits.model_parameters is {limits.model_parameters}")


def _parameters(shape: ModelShape) -> int:
    c = shape.n_embd
    return (shape.vocab_size + shape.block_size) * c + shape.n_layer * (12 * c * c + 13 * c) + 2 * c


def _check_memory(schema: Schema, state_codec: Codec, memory: int) -> None:
    """Weights and gradient in fp32, and the body beside them where it is not the weights themselves."""
    _, fp32 = codec.get("fp32").size_bounds(schema)
    staged = 0 if state_codec.name == "fp32" else state_codec.size_bounds(schema)[1]
    if 2 * fp32 + staged > memory:
        raise _unsupported(f"weights and gradient take {2 * fp32 + staged} bytes, this machine has {memory}")


def _state_codec(order: Order, schema: Schema, limits: MinerLimits) -> Codec:
    """The codec of the state, which is one full blob of a length that schema and codec allow."""
    if len(order.state) != 1 or order.state[0].base is not None:
        raise Refused(Reason.UNSUPPORTED_CODEC, "a state in parts or as a delta; one full blob is taken here")
    state = order.state[0]
    known = codec.get(state.codec)
    least, most = known.size_bounds(schema)
    if not least + PREFIX + 2 <= state.length <= most + PREFIX + limits.header_bytes:
        raise Refused(Reason.WRONG_STATE, f"{state.length} bytes cannot be this model in {known.name}")
    return known


def _check_assignment(order: Order, limits: MinerLimits) -> None:
    assignment = order.assignment
    if not 2 <= assignment.manifest_length <= MANIFEST_BYTES:
        raise Refused(Reason.TOO_LARGE, f"manifest of {assignment.manifest_length} bytes, at most {MANIFEST_BYTES}")
    if len(assignment.pages) != len(assignment.windows) or not order.n_windows:
        raise Refused(Reason.WRONG_ASSIGNMENT, "not a row of windows for each page, or no windows at all")
    if any(len(set(row)) != len(row) for row in assignment.windows) or (
        len(set(assignment.pages)) != len(assignment.pages)
    ):
        raise Refused(Reason.WRONG_ASSIGNMENT, "a page or a window is named twice")


def _unsupported(detail: str) -> Refused:
    return Refused(Reason.UNSUPPORTED_MODEL, detail)
