"""A validator without sockets: real training, ledger, checkpoints and text, and miners that answer as they are told."""

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
from fedgpt2.ledger.outbox import Outbox
from fedgpt2.link.blobs import Blob
from fedgpt2.protocol.digests import blob_digest
from fedgpt2.protocol.messages import BlobRef, Contribution
from fedgpt2.protocol.tensors import read_header
from fedgpt2.types import Hotkey
from fedgpt2.validator.context import RunContext
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.peers import ConnectedMiner, OrderResult, ReceivedContribution, Traffic
from fedgpt2.validator.run_directory import open_run_directory
from fedgpt2.validator.training import Training
from fedgpt2.validator.training_loop import run_round

SIGNER = Signer(Keypair.create_from_uri("//Validator"))
MINERS = [Hotkey(Keypair.create_from_uri(f"//Miner{number}").ss58_address) for number in range(5)]
FP32 = codec.get("fp32")


def answer(ticket, value=1e-3, **changes):
    """A gradient that is `value` everywhere; `changes` replace fields of the contribution."""
    schema = ticket.order.model.schema()
    header = FP32.header(schema)
    layout = read_header(header[8:], schema, "F32")
    data = memoryview(bytearray(FP32.encode(torch.full((layout.data_bytes // 4,), value))))
    blob = BlobRef(digest=blob_digest(header, data), length=len(header) + data.nbytes, codec="fp32")
    contribution = Contribution(
        run_id=ticket.order.run_id,
        round=ticket.order.round,
        work_id=ticket.work_id,
        parent=ticket.order.parent,
        sender=ticket.seat.hotkey,
        receiver=ticket.order.sender,
        blob=blob,
        claimed_loss=changes.get("claimed_loss", 9.5),
        tokens=ticket.tokens,
        seconds=0.1,
    )
    traffic = Traffic(bytes_down=100, bytes_up=blob.length, sent=0.1, described=0.3, received=0.4)
    return OrderResult(ticket, ReceivedContribution(contribution, layout, data), answered=True, traffic=traffic)


def nan(ticket):
    return answer(ticket, float("nan"))


def gone(ticket):
    return OrderResult(ticket, failure=NetworkError(Reason.UNREACHABLE, "connection refused"))


def liar(ticket):
    return OrderResult(ticket, failure=Refused(Reason.WRONG_ORDER, "an old one", Culprit.MINER), answered=True)


@dataclass
class ToldPeers:
    """`Miners` whose miners are functions from tickets to outcomes."""

    behaviours: dict
    outbox: Outbox
    receipts: list = field(default_factory=list)  # of each delivery the newest, by receiver
    posted: list = field(default_factory=list)  # every one, in order
    tickets: list = field(default_factory=list)

    async def present(self, at_least):
        return [ConnectedMiner(hotkey, f"127.0.0.1:{9000 + i}") for i, hotkey in enumerate(self.behaviours)]

    async def gather(self, tickets, blobs, *, deadline, quorum):
        self.tickets.append(tickets)
        return [self.behaviours[ticket.seat.hotkey](ticket) for ticket in tickets]

    def deliver(self):
        waiting = [receipt for hotkey in self.behaviours for receipt in self.outbox.waiting(hotkey)]
        self.receipts.append({receipt.receiver: receipt for receipt in waiting})
        self.posted += waiting
        for receipt in waiting:
            self.outbox.remove(receipt)


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
    """`with running(config, {hotkey: behaviour}) as run`: everything a round works with."""

    @contextmanager
    def start(config, behaviours):
        with opened(config) as (directory, training, _):
            peers = ToldPeers(dict(behaviours), directory.outbox)
            orders = order_book(corpus, config, directory.run_id)
            report = corpus.report(directory.key, config.run.eval_windows)
            yield RunContext(config, directory, training, corpus, orders, peers, report)

    return start


async def run_row(ctx, number, attempt=0):
    """A round; its record as plain values, as a line of rounds.jsonl has them."""
    return msgspec.to_builtins(await run_round(ctx, number, attempt))


def with_settings(config, **groups):
    """The settings with fields of groups replaced: `with_settings(config, run={"seed": 1})`."""
    return replace(
        config, **{g: replace(getattr(config, g), **c) if isinstance(c, dict) else c for g, c in groups.items()}
    )
