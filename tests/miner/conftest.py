"""A miner behind a real socket, and a validator's side that writes orders as it likes."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
import torch
from bittensor.sp_core import Keypair

from fedgpt2 import codec
from fedgpt2.config import Axon, Data, Gradient, Limits, MinerConfig, MinerLimits
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import build as build_manifest
from fedgpt2.data.sample import SampleSource
from fedgpt2.event_loop import Stop
from fedgpt2.gradient import registry
from fedgpt2.identity.signing import Signer, open_envelope
from fedgpt2.link.address import Address
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.link.client import AxonClient, open_session
from fedgpt2.miner.job import MinerContext
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.packer import HonestEncoder
from fedgpt2.miner.program import serve
from fedgpt2.miner.work import MinerCorpus, Trainer
from fedgpt2.model.gpt2 import initialise
from fedgpt2.protocol.digests import model_digest, work_id
from fedgpt2.protocol.messages import Assignment, Caps, Contribution, Failure, Order, Receipt
from fedgpt2.protocol.tensors import read_header
from fedgpt2.types import ModelShape

SHAPE = ModelShape(n_layer=1, n_head=1, n_embd=8, block_size=16)
CPU = torch.device("cpu")
DATA = Data(source="sample", max_slots=4, max_pages=2)
EXACT = registry.build(Gradient(precision="fp32"), CPU)


@pytest.fixture(scope="session")
def source():
    return SampleSource.load()


@pytest.fixture(scope="session")
def corpus(source):
    return Corpus(source, build_manifest(source, DATA, SHAPE.block_size, 7))


@pytest.fixture(scope="session")
def signers():
    return [Signer(Keypair.create_from_uri(f"//{name}")) for name in ("Miner", "Validator", "Other")]


@dataclass
class Validator:
    """The other side: signs orders and carries out an exchange step by step."""

    signer: Signer
    miner: Signer
    corpus: Corpus
    client: AxonClient
    shape: ModelShape = SHAPE
    run_id: str = "ab" * 32
    blobs: dict = field(default_factory=dict)

    def order(self, round=0, *, attempt=0, slot=0, n=4, seed=1, state_codec="fp32", weights=None, **changes):
        """An order; whatever `changes` names replaces its fields."""
        weights = weights or initialise(self.shape, seed)
        schema, which = self.shape.schema(), codec.get(state_codec)
        state = Blob.of(state_codec, which.header(schema), which.encode(weights.flat))
        manifest = Blob.of("json", b"", memoryview(self.corpus.manifest.to_bytes()))
        self.blobs |= {blob.ref.digest: blob for blob in (state, manifest)}
        share = self.corpus.assign(round, slot, n)
        order = Order(
            run_id=self.run_id,
            round=round,
            attempt=attempt,
            sender=self.signer.hotkey,
            receiver=self.miner.hotkey,
            parent=model_digest(schema, weights.memory()),
            model=self.shape,
            state=(state.ref,),
            assignment=Assignment(
                manifest=share.manifest,
                manifest_length=manifest.ref.length,
                slot=share.slot,
                pages=share.pages,
                windows=share.windows,
            ),
            answer_codecs=("fp32",),
            caps=Caps(answer_bytes=1 << 30),
            budget_seconds=60.0,
        )
        return msgspec.structs.replace(order, **changes)

    async def post(self, order):
        """Post an order; returns (work_id, Accepted)."""
        envelope = self.signer.seal("order", order)
        return work_id(envelope.payload), await self.client.post_order(envelope)

    async def send(self, accepted):
        """Send every blob that is lacking."""
        for lack in accepted.lacks:
            await self.client.put_blob(self.blobs[lack.digest], lack.have)

    async def ask(self, order):
        """Post an order and send what it needs; returns the work_id."""
        work, accepted = await self.post(order)
        await self.send(accepted)
        return work

    async def answer(self, work):
        """The opened contribution or failure."""
        status = await self.client.wait(work, 20)
        while status.answer is None:
            status = await self.client.wait(work, 20)
        kind, type_ = ("contribution", Contribution) if status.answer.kind == "contribution" else ("failure", Failure)
        return open_envelope(status.answer, kind, type_, signer=self.miner.hotkey)

    async def fetch(self, contribution):
        """The gradient, as fp32."""
        which, layouts = codec.get(contribution.blob.codec), []

        def place(header):
            layouts.append(read_header(header, self.shape.schema(), which.dtype))
            return memoryview(bytearray(layouts[0].data_bytes))

        blob = await self.client.get_blob(Incoming(contribution.blob, header_limit=1 << 20, open_data=place))
        return which.decode(layouts[0], self.shape.schema(), blob.data)

    def receipt(self, work, order, **changes):
        """A signed receipt that admits the work."""
        receipt = Receipt(
            run_id=order.run_id,
            round=order.round,
            sender=self.signer.hotkey,
            receiver=self.miner.hotkey,
            work_id=work,
            status="admitted",
            applied=True,
            weight=0.25,
            model="0" * 64,
            ledger_head="0" * 64,
        )
        return self.signer.seal("receipt", msgspec.structs.replace(receipt, **changes))


@dataclass
class Rig:
    """A running miner: what it said, and how to reach it."""

    address: Address
    said: list
    session: object
    signers: list
    corpus: Corpus

    def validator(self, index=1, **settings):
        client = AxonClient(self.session, self.signers[index], self.address, Limits())
        client.receiver = self.signers[0].hotkey
        return Validator(self.signers[index], self.signers[0], self.corpus, client, **settings)


@pytest.fixture
def rig(tmp_path, source, corpus, signers):
    """`async with rig(...) as running`: starts a miner; the same folder each time, so a second start is a restart."""

    @asynccontextmanager
    async def start(strategy=EXACT, packer=None, limits=None, validators=()):
        config = MinerConfig(axon=Axon(port=0, validators=validators), limits=limits or MinerLimits(), device="cpu")
        tools = MinerContext(signers[0], MinerCorpus(source), Trainer(CPU, strategy), packer or HonestEncoder())
        stop, said, listening = Stop(), [], asyncio.Event()

        def say(line):
            said.append(line)
            listening.set()

        serving = asyncio.create_task(serve(config, tools, OrderJournal(tmp_path / "miner"), stop, say))
        await asyncio.wait({serving, asyncio.ensure_future(listening.wait())}, return_when="FIRST_COMPLETED")
        port = int(said[0].split(":")[1].split()[0])
        async with open_session(config.limits) as session:
            yield Rig(Address("127.0.0.1", port), said, session, signers, corpus)
        stop.set()
        assert await asyncio.wait_for(serving, 5) == 0

    return start
