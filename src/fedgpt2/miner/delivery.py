"""The blobs an order names, on their way in: the state and the manifest."""

import asyncio

from fedgpt2.config import MinerLimits
from fedgpt2.errors import Reason, Refused
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.miner.memory import Memory, StateReceiver
from fedgpt2.miner.orders import Plan
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.messages import BlobRef, Lack

__all__ = ["BlobCache", "Delivery", "StateDelivery"]


class Delivery:
    """One blob: how much of it is here, and a bell that rings when it is whole and its digest right."""

    def __init__(self, incoming: Incoming) -> None:
        self.incoming = incoming
        self.arrived = asyncio.Event()
        self._blob: Blob | None = None

    @property
    def ref(self) -> BlobRef:
        """Which blob."""
        return self.incoming.ref

    @property
    def blob(self) -> Blob:
        """The whole blob. Raises Refused(unknown_blob) before it has arrived."""
        if self._blob is None:
            raise Refused(Reason.UNKNOWN_BLOB, f"{self.ref.digest} has not arrived")
        return self._blob

    def complete(self, blob: Blob) -> None:
        """Ring the bell."""
        self._blob = blob
        self.arrived.set()

    def lack(self) -> Lack | None:
        """What is missing of it, or None."""
        return None if self.arrived.is_set() else Lack(digest=self.ref.digest, have=self.incoming.have)


class StateDelivery(Delivery):
    """A state, received into the miner's one state buffer."""

    def __init__(self, incoming: Incoming, memory: Memory, landing: StateReceiver) -> None:
        super().__init__(incoming)
        self.memory = memory
        self._landing = landing

    def weights(self) -> FlatState:
        """The weights that arrived; blocking where they have to be widened to fp32."""
        return self._landing.weights()


class BlobCache:
    """What is here of the blobs of the latest order; kept, so that what the next order names again is not sent again.

    There is one state buffer: taking another state gives up the one before, so nobody may be reading it then.
    """

    def __init__(self, limits: MinerLimits) -> None:
        self._header_limit = limits.header_bytes
        self._manifest: Delivery | None = None
        self._state: StateDelivery | None = None

    def manifest(self, plan: Plan) -> Delivery:
        """The delivery of the plan's manifest."""
        if self._manifest is None or self._manifest.ref != plan.manifest:
            place = memoryview(bytearray(plan.manifest.length))
            incoming = Incoming(plan.manifest, header_limit=self._header_limit, open_data=lambda _header: place)
            self._manifest = Delivery(incoming)
        return self._manifest

    def state(self, plan: Plan) -> StateDelivery:
        """The delivery of the plan's state. Raises Refused(unsupported_model) where memory does not suffice."""
        held = self._state
        if held is not None and held.ref == plan.state and held.memory.schema == plan.schema:
            return held
        memory = None
        if held is not None:
            held.incoming.claim()  # shuts out a connection that still writes into the buffer
            memory = held.memory if held.memory.schema == plan.schema else None
        self._state = held = None  # the old buffers are free before new ones are taken
        memory = memory or Memory(plan.schema)
        landing = StateReceiver(memory, plan.state_codec, plan.state.length)
        incoming = Incoming(plan.state, header_limit=self._header_limit, open_data=landing.open)
        self._state = StateDelivery(incoming, memory, landing)
        return self._state
