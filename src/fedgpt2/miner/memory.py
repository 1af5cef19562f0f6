"""The two large buffers of a miner: the state it receives and the gradient it sends.

They are allocated once a model shape and used again for every order. In fp32 the received body's data region is the
weights and the gradient's buffer is the data region that is sent: neither is copied.
"""

import torch

from fedgpt2.codec import Codec
from fedgpt2.errors import Reason, Refused
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.tensors import PREFIX, Layout
from fedgpt2.types import Schema

__all__ = ["Memory", "StateReceiver"]


class Memory:
    """Buffers for one schema, on the CPU."""

    def __init__(self, schema: Schema) -> None:
        """Raises Refused(unsupported_model) when the machine has not the memory."""
        self.schema = schema
        self._bodies: dict[str, torch.Tensor] = {}
        self._decoded: torch.Tensor | None = None
        try:
            self.gradient = FlatState(schema)
        except (MemoryError, RuntimeError) as error:
            raise _too_large(error) from error

    def body(self, codec: Codec) -> memoryview:
        """The data region a state in `codec` is received into; the same one for every state."""
        if codec.name not in self._bodies:
            try:
                _, most = codec.size_bounds(self.schema)
                self._bodies[codec.name] = torch.empty(most, dtype=torch.uint8)
            except (MemoryError, RuntimeError) as error:
                raise _too_large(error) from error
        return self._bodies[codec.name].numpy().data.cast("B")

    def weights(self, codec: Codec, layout: Layout) -> FlatState:
        """The received state as fp32 weights: a view of the body where codec and layout allow it."""
        body = self._bodies[codec.name]
        flat = codec.decode(layout, self.schema, self.body(codec)[: layout.data_bytes], self._decoded)
        if flat.data_ptr() != body.data_ptr():
            self._decoded = flat
        return FlatState(self.schema, flat)


class StateReceiver:
    """Where one incoming state body goes; remembers the layout its header described."""

    def __init__(self, memory: Memory, codec: Codec, length: int) -> None:
        """`length`: bytes of the whole body, as its order announces them."""
        self._memory = memory
        self._length = length
        self._codec = codec
        self._layout: Layout | None = None

    def open(self, header: bytes) -> memoryview:
        """Check a body's JSON header against the schema and give the place for its data.

        Raises ProtocolError, blamed on the sender, before a byte of the data is taken.
        """
        data_bytes = self._length - PREFIX - len(header)
        self._layout = self._codec.open(header, self._memory.schema, data_bytes)
        return self._memory.body(self._codec)[:data_bytes]

    def weights(self) -> FlatState:
        """The state that has arrived. Raises Refused(wrong_state) when none has."""
        if self._layout is None:
            raise Refused(Reason.WRONG_STATE, "no state has arrived")
        return self._memory.weights(self._codec, self._layout)


def _too_large(error: BaseException) -> Refused:
    return Refused(
        Reason.UNSUPPORTED_MODEL, f"no memory for this model: {(str(error).splitlines() or ['out of memory'])[0][:200]}"
    )
