"""Old answers and old orders, by processes that were killed in between."""

import pytest
import torch
from bittensor.sp_core import Keypair

from fedgpt2 import codec
from fedgpt2.config import Data, Limits, Model, Run, ValidatorConfig
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import Reason, Refused
from fedgpt2.identity.signing import Signer
from fedgpt2.link.address import Address
from fedgpt2.link.base import ConnectedMiner
from fedgpt2.link.blobs import Blob
from fedgpt2.link.client import AxonClient, open_session
from fedgpt2.ranking.table import REVISION
from fedgpt2.validator.orders import OrderBook
from fedgpt2.validator.training import Training

REPLAYING = "replaying_miner:main"
NOBODY_IS_ADMITTED = ("--limits.gradient_norm", "1e-9")


def of(row):
    """What became of the only miner of a round."""
    (miner,) = row["miners"]
    return miner["status"], miner["reason"], miner["fault"]


def test_an_answer_is_refused_in_the_next_round_though_the_weights_did_not_move(federation):
    replaying = federation.miner(program=REPLAYING)
    first = federation.validator([replaying], *NOBODY_IS_ADMITTED, rounds=0)
    first.wait_for("round 2 ")
    first.kill()
    kept, replayed = federation.rows()[:2]
    assert of(kept) == ("refused", "norm_bound", "MINER")  # the answer is good, but nothing is good enough
    assert (kept["applied"], kept["reason"], kept["model"]) == (False, "too_few", kept["parent"])
    assert replayed["parent"] == kept["parent"]
    assert kept["evidence"]["revision"] == REVISION
    assert of(replayed) == ("refused", "wrong_order", "MINER")

    last = len(federation.rows()) + 2
    second = federation.validator([replaying], rounds=last)  # now any gradient is good enough
    second.ended()
    rows = federation.rows()
    assert len(rows) == last
    assert {of(row) for row in rows[1:]} == {("refused", "wrong_order", "MINER")}
    assert {row["model"] for row in rows} == {kept["parent"]}
    assert replaying.lines("refused by")[-1].startswith(f"round {last}: refused by")


def test_an_answer_to_a_round_that_was_taken_back_is_refused_when_it_runs_again(federation):
    replaying = federation.miner(program=REPLAYING)
    first = federation.validator([replaying], "--checkpoint.every", 100, rounds=0)
    first.wait_for("round 2 ")
    first.kill()
    before = federation.rows()[0]
    assert of(before) == ("admitted", None, None)
    assert before["applied"]

    second = federation.validator([replaying], "--checkpoint.every", 100, rounds=1)
    second.ended()
    (again,) = federation.rows()
    assert (again["round"], again["parent"]) == (before["round"], before["parent"])  # only the attempt differs
    assert of(again) == ("refused", "wrong_order", "MINER")
    assert again["model"] == again["parent"]


@pytest.fixture
def orders(shared, tmp_path):
    """Writes orders for a miner: `orders(hotkey, round, windows)` is a signed envelope."""
    data = Data(source=shared.source, max_slots=4, max_pages=2, span=4)
    config = ValidatorConfig(data=data, model=Model(preset="tiny"), run=Run(dir=str(tmp_path / "none")))
    corpus = Corpus.open(data, config.model.shape.block_size, config.run.seed)
    snapshot = Training(config, torch.device("cpu")).snapshot()
    manifest = corpus.manifest.to_bytes()
    book = OrderBook(
        signer=Signer(Keypair.create_from_uri("//Validator")),
        run_id="ab" * 32,
        model=config.model.shape,
        corpus=corpus,
        manifest=Blob.of("json", b"", memoryview(manifest)),
        answer_codec=codec.get("fp32"),
        windows=4,
        budget_seconds=60.0,
        header_bytes=config.limits.header_bytes,
    )

    def write(hotkey, number, attempt=0):
        chosen = [(ConnectedMiner(hotkey, "axon"), 0)]
        (issued,) = book.write(number, attempt, snapshot.model, snapshot.blob.ref, chosen)
        return issued.envelope

    return book.signer, write


async def test_an_older_order_is_refused_by_a_miner_that_was_killed_and_restarted(federation, orders):
    signer, write = orders
    first = federation.miner()
    hotkey, limits = first.hotkey, Limits()
    async with open_session(limits) as session:
        client = AxonClient(session, signer, Address("127.0.0.1", first.port), limits)
        await client.introduce()
        await client.post_order(write(hotkey, 4))
        accepted = await client.post_order(write(hotkey, 5))
        first.kill()
        again = federation.miner(port=first.port)
        assert again.hotkey == hotkey
        for older in (write(hotkey, 4), write(hotkey, 1), write(hotkey, 0)):
            with pytest.raises(Refused) as caught:
                await client.post_order(older)
            assert caught.value.reason is Reason.STALE_ORDER
        assert (await client.post_order(write(hotkey, 5))).work_id == accepted.work_id
        await client.post_order(write(hotkey, 4, attempt=1))  # taken back by its validator: newer than all before
        with pytest.raises(Refused) as caught:
            await client.post_order(write(hotkey, 6))
        assert caught.value.reason is Reason.STALE_ORDER
