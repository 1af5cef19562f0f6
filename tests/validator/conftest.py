"""A validator without sockets: real training, ledger, checkpoints and text, and miners with scripted answers."""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import msgspec
import pytest
import torch
from bittensor.sp_core import Keypair

from fedgpt2 import codec
from fedgpt2.config import Aggregation, Checkpoint, Data, Model, Ranking, ValidatorConfig
from fedgpt2.config import Run as RunConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import Culprit, NetworkError, Reason, Refused
from fedgpt2.identity.signing import Signer
from fedgpt2.link.base import ConnectedMiner, OrderResult, ReceivedContribution, Traffic
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.messages import BlobRef, Contribution, Receipt, decode
from fedgpt2.protocol.tensors import read_header
from fedgpt2.storage.mapped import MemoryPool
from fedgpt2.types import Hotkey
from fedgpt2.validator.collector import Collector
from fedgpt2.validator.context import RunContext
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.run_directory import open_run_directory
from fedgpt2.validator.training import Training
from fedgpt2.validator.training_loop import run_round

SIGNER = Signer(Keypair.create_from_uri("//Validator"))
MINERS = [Hotkey(Keypair.create_from_uri(f"//Miner{number}").ss58_address) for number in range(5)]
FP32 = codec.get("fp32")


def answer(issued, value=1e-3, **changes):
    """A gradient that is `value` everywhere; `changes` replace fields of the contribution."""
    schema = issued.order.model.schema()
    header = FP32.header(schema)
    layout = read_header(header[8:], schema, "F32")
    data = memoryview(bytearray(FP32.encode(torch.full((layout.data_bytes // 4,), value))))
    blob = BlobRef(digest=blob_digest(header, data), length=len(header) + data.nbytes, codec="fp32")
    contribution = Contribution(
        run_id=issued.order.run_id,
        round=issued.order.round,
        work_id=issued.work_id,
        parent=issued.order.parent,
        sender=issued.miner.hotkey,
        receiver=issued.order.sender,
        blob=blob,
        claimed_loss=changes.get("claimed_loss", 9.5),
        tokens=issued.tokens,
        seconds=0.1,
    )
    traffic = Traffic(bytes_down=100, bytes_up=blob.length, sent=0.1, described=0.3, received=0.4)
    return OrderResult(issued, ReceivedContribution(contribution, layout, data), answered=True, traffic=traffic)


def nan(issued):
    return answer(issued, float("nan"))


def gone(issued):
    return OrderResult(issued, failure=NetworkError(Reason.UNREACHABLE, "connection refused"))


def wrong_order(issued):
    return OrderResult(issued, failure=Refused(Reason.WRONG_ORDER, "an old one", Culprit.MINER), answered=True)


def receipt_for(hotkey, number=1):
    """A receipt of round `number`."""
    return Receipt(
        run_id="1" * 64,
        round=number,
        sender=SIGNER.hotkey,
        receiver=hotkey,
        work_id=f"{number}{MINERS.index(hotkey)}".rjust(64, "0"),
        status="admitted",
        applied=True,
        model="3" * 64,
        ledger_head="4" * 64,
    )


@dataclass
class ScriptedLink:
    """A link whose miner is a function from issued orders to results."""

    miner: ConnectedMiner
    behaviour: object
    orders: list = field(default_factory=list)  # issued
    receipts: list = field(default_factory=list)  # the messages

    async def offer(self, issued, blobs, traffic, lease):
        self.orders.append(issued)
        result = self.behaviour(issued)
        for name in ("bytes_down", "bytes_up", "sent", "described", "received"):
            setattr(traffic, name, getattr(result.traffic, name))
        traffic.answered = result.answered
        if result.failure is not None:
            raise result.failure
        return result.received

    async def cancel(self, work_id):
        raise AssertionError("nothing is cancelled here")

    async def deliver(self, receipt):
        self.receipts.append(decode(receipt.payload, Receipt))


def connected(collector, behaviours):
    """Links to miners by {hotkey: behaviour}."""
    links = [
        ScriptedLink(ConnectedMiner(hotkey, f"127.0.0.1:{9000 + i}"), behaviour)
        for i, (hotkey, behaviour) in enumerate(behaviours.items())
    ]
    for link in links:
        collector.connect(link)
    return links


@pytest.fixture(scope="session")
def corpus():
    opened = Corpus.open(Data(source="sample", max_slots=4, max_pages=2), 64, 1337)
    yield opened
    opened.close()


@pytest.fixture
def config(tmp_path):
    return ValidatorConfig(
        data=Data(source="sample", max_slots=4, max_pages=2, windows=4),
        model=Model(preset="tiny"),
        aggregation=Aggregation(rule="mean", gate=False),
        ranking=Ranking(tokens=128, audits=1),
        checkpoint=Checkpoint(every=1),
        run=RunConfig(dir=str(tmp_path / "run"), eval_every=2, eval_windows=4, score_windows=2),
        device="cpu",
        rounds=3,
    )


def order_book(corpus, config, run_id="ab" * 32, signer=SIGNER):
    manifest = corpus.manifest.to_bytes()
    return OrderBook(
        signer=signer,
        run_id=run_id,
        model=config.model.shape,
        corpus=corpus,
        manifest=Blob.of("json", b"", memoryview(manifest)),
        answer_codec=FP32,
        windows=config.data.windows,
        budget_seconds=config.round.deadline,
        header_bytes=config.limits.header_bytes,
    )


@pytest.fixture
def opened(corpus):
    """`with opened(config) as (directory, training, done)`: the run directory opened and resumed; `.notices` fill."""

    @contextmanager
    def open_(config):
        with open_run_directory(config, corpus.manifest) as directory:
            training = Training(config, torch.device("cpu"))
            open_.notices.clear()
            yield directory, training, directory.resume(config, training, open_.notices.append)

    open_.notices = []
    return open_


@pytest.fixture
def running(opened, corpus):
    """`with running(config, {hotkey: behaviour}) as run`: everything a round works with; `.links` by hotkey."""

    @contextmanager
    def start(config, behaviours):
        with opened(config) as (directory, training, _):
            collector = Collector(SIGNER, directory.outbox, MemoryPool().lease, start.notices.append)
            start.links = {link.miner.hotkey: link for link in connected(collector, behaviours)}
            orders = order_book(corpus, config, directory.run_id)
            report = corpus.report(directory.key, config.run.eval_windows)
            yield RunContext(config, directory, training, corpus, orders, collector, report)

    start.notices = []
    return start


async def run_row(ctx, number, attempt=0):
    """A round; its record as plain values, as a line of rounds.jsonl has them."""
    return msgspec.to_builtins(await run_round(ctx, number, attempt))


def with_settings(config, **groups):
    """The settings with fields of groups replaced: `with_settings(config, run={"seed": 1})`."""
    return replace(
        config, **{g: replace(getattr(config, g), **c) if isinstance(c, dict) else c for g, c in groups.items()}
    )
