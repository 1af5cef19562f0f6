"""The miner written from the documents alone: it answers our client over sockets, and refuses as we do."""

import ast
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bittensor import http_auth
from bittensor.sp_core import Keypair
from msgspec import structs

from fedgpt2 import codec
from fedgpt2.config import PRESETS, Data, Limits
from fedgpt2.data.corpus import Corpus
from fedgpt2.errors import PeerError, Reason
from fedgpt2.identity.signing import Signer, open_envelope
from fedgpt2.link.address import Address
from fedgpt2.link.blobs import Blob, Incoming
from fedgpt2.link.client import AxonClient, open_session
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.digests import blob_digest, model_digest, work_id
from fedgpt2.protocol.messages import (
    Assignment,
    BlobRef,
    Caps,
    Contribution,
    Envelope,
    Failure,
    Order,
    Receipt,
)
from fedgpt2.protocol.tensors import read_header
from fedgpt2.types import Digest

from .numerics import cosine, exact, random_weights

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "src" / "fedgpt2" / "data" / "assets"
TINY = PRESETS["tiny"]
RUN_ID = "5" * 64
SEQ_LEN = 32


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.open(Data(source="sample"), seq_len=SEQ_LEN, seed=11)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(Keypair.create_from_seed(b"\x42" * 32))


@pytest.fixture
def hotkey_file(tmp_path: Path) -> Path:
    path = tmp_path / "hotkey"
    path.write_text(f'{{"secretSeed": "0x{"17" * 32}"}}')
    return path


@contextlib.contextmanager
def running(hotkey_file: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The miner as a process, and the port it took."""
    command = [sys.executable, str(ROOT / "examples" / "numpy_miner.py"), "--port", "0", *flags]
    command += ["--assets", str(ASSETS), "--hotkey-file", str(hotkey_file)]
    command += ["--journal", str(hotkey_file.with_name("journal.json"))]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, int(line.split(" as ")[0].rpartition(":")[2])
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def client_of(port: int, signer: Signer) -> AsyncIterator[AxonClient]:
    limits = Limits()
    async with open_session(limits) as session:
        yield AxonClient(session, signer, Address("127.0.0.1", port), limits)


class SendBuffers:
    """The validator's side of one order."""

    def __init__(self, signer: Signer, corpus: Corpus) -> None:
        self.signer, self.corpus = signer, corpus
        self.weights = random_weights(TINY, 1)
        fp32 = codec.get("fp32")
        data, header = self.weights.memory(), fp32.header(TINY.schema())
        self.state = Blob(
            BlobRef(digest=blob_digest(header, data), length=len(header) + data.nbytes, codec="fp32"), header, data
        )
        manifest = corpus.manifest.to_bytes()
        reference = BlobRef(digest=corpus.manifest.digest(), length=len(manifest), codec="json")
        self.manifest = Blob(reference, b"", memoryview(manifest))
        self.blobs = {blob.ref.digest: blob for blob in (self.state, self.manifest)}
        self.parent = model_digest(TINY.schema(), data)

    def order(self, miner: str, number: int = 5, **changes: object) -> Order:
        share = self.corpus.assign(number, 3, 6)
        order = Order(
            run_id=RUN_ID,
            round=number,
            attempt=1,
            sender=self.signer.hotkey,
            receiver=miner,
            parent=self.parent,
            model=TINY,
            state=(self.state.ref,),
            assignment=Assignment(
                manifest=share.manifest,
                manifest_length=self.manifest.ref.length,
                slot=share.slot,
                pages=share.pages,
                windows=share.windows,
            ),
            answer_codecs=("bf16", "fp32"),
            caps=Caps(answer_bytes=self.state.ref.length),
            budget_seconds=60.0,
        )
        return structs.replace(order, **changes)

    def seal(self, order: Order) -> Envelope:
        return self.signer.seal("order", order)

    async def send(self, client: AxonClient, envelope: Envelope) -> str:
        """Post the order, put what the miner lacks; the work's name."""
        accepted = await client.post_order(envelope)
        for lack in accepted.lacks:
            await client.put_blob(self.blobs[lack.digest], lack.have)
        return accepted.work_id

    async def answer(self, client: AxonClient, order: Order) -> Envelope:
        name = await self.send(client, self.seal(order))
        status = await client.wait(name, 30)
        assert status.answer is not None
        return status.answer

    def receipt(self, order: Order, name: str) -> Envelope:
        receipt = Receipt(
            run_id=RUN_ID,
            round=order.round,
            sender=self.signer.hotkey,
            receiver=order.receiver,
            work_id=name,
            status="admitted",
            tokens=6 * SEQ_LEN,
            weight=1.0,
            applied=True,
            model=self.parent,
            ledger_head="e" * 64,
        )
        return self.signer.seal("receipt", receipt)


@pytest.fixture
def desk(signer: Signer, corpus: Corpus) -> SendBuffers:
    return SendBuffers(signer, corpus)


async def test_numpy_miner_answers_an_order_over_sockets(desk: SendBuffers, hotkey_file: Path) -> None:
    with running(hotkey_file) as (process, port):
        async with client_of(port, desk.signer) as client:
            info = await client.introduce()
            order = desk.order(info.hotkey)
            envelope = desk.seal(order)
            name = await desk.send(client, envelope)
            assert name == work_id(envelope.payload)
            status = await client.wait(name, 30)
            assert status.answer is not None
            said = open_envelope(status.answer, "contribution", Contribution, signer=info.hotkey)
            assert (said.run_id, said.round, said.work_id, said.parent) == (RUN_ID, 5, name, desk.parent)
            assert (said.sender, said.receiver, said.tokens) == (info.hotkey, desk.signer.hotkey, 6 * SEQ_LEN)
            assert (await client.post_order(envelope)).lacks == ()
            assert (await client.wait(name, 30)).answer == status.answer

            received = FlatState(TINY.schema())
            header_seen: list[bytes] = []
            incoming = Incoming(
                said.blob,
                header_limit=1 << 20,
                open_data=lambda header: header_seen.append(header) or received.memory(),  # type: ignore[func-returns-value]
            )
            await client.get_blob(incoming)
            assert read_header(header_seen[0], TINY.schema(), "F32").canonical

            windows = desk.corpus.windows(desk.corpus.assign(5, 3, 6))
            loss, gradient = exact(desk.weights, TINY, windows)
            assert said.claimed_loss == pytest.approx(loss, rel=1e-5)
            assert cosine(gradient.flat.numpy(), received.flat.numpy()) >= 0.9999

            await client.deliver_receipt(desk.receipt(order, name))
            with pytest.raises(PeerError) as gone:
                await client.wait(name, 0)
            assert gone.value.reason is Reason.UNKNOWN_WORK
        process.terminate()
        assert process.stdout is not None
        assert "receipt" in process.stdout.read()


async def test_numpy_miner_sends_the_rest_of_its_gradient(desk: SendBuffers, hotkey_file: Path) -> None:
    with running(hotkey_file) as (_, port):
        async with client_of(port, desk.signer) as client:
            info = await client.introduce()
            answer = await desk.answer(client, desk.order(info.hotkey))
            said = open_envelope(answer, "contribution", Contribution, signer=info.hotkey)
            space = memoryview(bytearray(said.blob.length))
            whole = await client.get_blob(
                Incoming(said.blob, header_limit=1 << 20, open_data=lambda _: FlatState(TINY.schema()).memory())
            )
            bytes_ = b"".join(bytes(part) for part in whole.slices())
            incoming = Incoming(
                said.blob, header_limit=1 << 20, open_data=lambda header: space[8 + len(header) : said.blob.length]
            )
            await incoming.feed(bytes_[:1000000])
            assert (await client.get_blob(incoming)).ref.digest == Digest(said.blob.digest)


async def test_numpy_miner_refuses_what_the_protocol_says(desk: SendBuffers, hotkey_file: Path) -> None:
    with running(hotkey_file) as (_, port):
        async with client_of(port, desk.signer) as client:
            info = await client.introduce()
            me = info.hotkey
            assert await refusal(client, desk, desk.order(desk.signer.hotkey)) is Reason.WRONG_RECEIVER
            assert await refusal(client, desk, desk.order(me, strategy="local")) is Reason.UNSUPPORTED_STRATEGY
            assert await refusal(client, desk, desk.order(me, answer_codecs=("bf16",))) is Reason.UNSUPPORTED_CODEC
            odd = replace(TINY, n_head=3)
            assert await refusal(client, desk, desk.order(me, model=odd)) is Reason.UNSUPPORTED_MODEL
            await client.post_order(desk.seal(desk.order(me, 6)))
            assert await refusal(client, desk, desk.order(me, 5)) is Reason.STALE_ORDER
            assert await refusal(client, desk, desk.order(me, 6, budget_seconds=61.0)) is Reason.STALE_ORDER
            envelope = desk.seal(desk.order(me, 7))
            for signature in ("0" * 128, desk.seal(desk.order(me, 8)).signature):
                forged = structs.replace(envelope, signature=signature)
                with pytest.raises(PeerError) as caught:
                    await client.post_order(forged)
                assert caught.value.reason is Reason.BAD_SIGNATURE
            with pytest.raises(PeerError) as caught:
                await client.put_blob(replace(desk.state, ref=structs.replace(desk.state.ref, digest="0" * 64)), 0)
            assert caught.value.reason is Reason.UNKNOWN_BLOB
        stranger = Signer(Keypair.create_from_seed(b"\x43" * 32))
        async with client_of(port, stranger) as client:
            await client.introduce()
            with pytest.raises(PeerError) as caught:
                await client.wait(work_id(envelope.payload), 0)
            assert caught.value.reason is Reason.UNKNOWN_WORK
            other = SendBuffers(stranger, desk.corpus)
            assert await refusal(client, other, other.order(me, 1)) is Reason.BUSY


async def test_numpy_miner_verifies_state_and_text(desk: SendBuffers, hotkey_file: Path) -> None:
    with running(hotkey_file) as (_, port):
        async with client_of(port, desk.signer) as client:
            me = (await client.introduce()).hotkey
            wrong = desk.order(me, 5, parent="f" * 64)
            assert failure(await desk.answer(client, wrong), me) == Reason.WRONG_STATE
            share = desk.order(me, 6).assignment
            pages = ({"pages": (page, *share.pages[1:])} for page in (485, -1))
            for number, lost in enumerate((*pages, {"windows": ((10**4,),)}, {"windows": ((-2,),)}), 6):
                astray = desk.order(me, number, assignment=structs.replace(share, **lost))
                assert failure(await desk.answer(client, astray), me) == "wrong_assignment"
            manifest = desk.manifest.data.tobytes().replace(b'"seed":11', b'"seed": 11')
            other = Blob(
                BlobRef(digest=blob_digest(manifest), length=len(manifest), codec="json"), b"", memoryview(manifest)
            )
            desk.blobs[other.ref.digest] = other
            loose = structs.replace(share, manifest=other.ref.digest, manifest_length=other.ref.length)
            assert failure(await desk.answer(client, desk.order(me, 10, assignment=loose)), me) == "wrong_manifest"
            good = await desk.answer(client, desk.order(me, 11))
            assert good.kind == "contribution"


async def test_numpy_miner_remembers_over_a_restart(desk: SendBuffers, hotkey_file: Path) -> None:
    with running(hotkey_file) as (_, port):
        async with client_of(port, desk.signer) as client:
            me = (await client.introduce()).hotkey
            await client.post_order(desk.seal(desk.order(me, 9)))
    with running(hotkey_file) as (_, port):
        async with client_of(port, desk.signer) as client:
            await client.introduce()
            assert await refusal(client, desk, desk.order(me, 8)) is Reason.STALE_ORDER
            accepted = await client.post_order(desk.seal(desk.order(me, 9)))
            assert len(accepted.lacks) == 2
            await client.cancel(accepted.work_id)
            with pytest.raises(PeerError) as gone:
                await client.wait(accepted.work_id, 0)
            assert gone.value.reason is Reason.UNKNOWN_WORK


async def test_numpy_miner_lets_a_signed_request_through_once(desk: SendBuffers, hotkey_file: Path) -> None:
    with running(hotkey_file) as (_, port):
        async with client_of(port, desk.signer) as client:
            me = (await client.introduce()).hotkey
            target, now = f"/v1/work/{'a' * 64}", time.time_ns()

            def signed(path: str = target, nonce: int | None = None, receiver: str = me) -> dict[str, str]:
                wallet = Keypair.create_from_seed(b"\x42" * 32)
                return http_auth.sign(wallet, method="GET", path=path, receiver_ss58=receiver, nonce_ns=nonce)

            async def ask(headers: dict[str, str], path: str = target) -> str:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
                writer.write("\r\n".join(lines).encode())
                answer = await reader.read()
                writer.close()
                return str(json.loads(answer.partition(b"\r\n\r\n")[2])["reason"])

            headers = signed()
            assert await ask(headers) == "unknown_work"
            assert await ask(headers) == "replay"
            assert await ask(signed(path=f"{target}?wait=1")) == "bad_signature"
            assert await ask(signed(receiver=desk.signer.hotkey)) == "wrong_receiver"
            for nonce in (now - 11 * 10**9, now + 60 * 10**9):
                assert await ask(signed(nonce=nonce)) == "stale_request"
            for name in ("Via", "forwarded", "X-Forwarded-For"):
                assert await ask(signed() | {name: "a"}) == "forwarded"
            assert await ask(signed() | {"x-bittensor-nonce": "1"}) == "bad_message"
            assert await ask({}) == "bad_message"
            assert await ask(signed(path="/v1/nothing"), "/v1/nothing") == "bad_message"


def test_numpy_miner_is_one_file_of_400_lines_that_imports_nothing_of_ours() -> None:
    (path,) = (ROOT / "examples").glob("numpy_*.py")
    assert len(path.read_text().splitlines()) <= 400
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"blake3", "numpy", "sr25519", "tiktoken"}


async def refusal(client: AxonClient, desk: SendBuffers, order: Order) -> Reason:
    with pytest.raises(PeerError) as caught:
        await client.post_order(desk.seal(order))
    return caught.value.reason


def failure(answer: Envelope, miner: str) -> str:
    return open_envelope(answer, "failure", Failure, signer=miner).reason
