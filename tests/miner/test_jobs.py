"""One order at a time: what is stale, busy, cancelled, late or wrong, over real sockets."""

import asyncio
import dataclasses
import gc
import threading
import time
from types import SimpleNamespace

import msgspec
import pytest
import torch

from fedgpt2.config import MinerLimits
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import build as build_manifest
from fedgpt2.data.store import Store
from fedgpt2.errors import CorpusError, DiskFullError, PeerError, Reason, Refused
from fedgpt2.gradient.strategy import Result
from fedgpt2.link.blobs import Blob
from fedgpt2.miner import service
from fedgpt2.miner.job import MinerContext
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.packer import HonestEncoder
from fedgpt2.miner.service import Miner
from fedgpt2.miner.work import MinerCorpus, Trainer
from fedgpt2.model.gpt2 import initialise
from fedgpt2.protocol.messages import Caps
from fedgpt2.types import Digest, ModelShape

from .conftest import CPU, DATA, EXACT, SHAPE, Validator


class Slow:
    """Computes until it is told to stop, or let go."""

    def __init__(self, obedient=True):
        self.started = threading.Event()
        self.let_go = threading.Event()
        self.stopped = 0
        self.obedient = obedient

    def __call__(self, model, windows, *, out, stop):
        self.started.set()
        while not self.let_go.is_set():
            if self.obedient and stop.wait(0.01):
                self.stopped += 1
                raise Refused(Reason.CANCELLED, "the gradient was called off")
            time.sleep(0.01)
        return EXACT(model, windows, out=out, stop=threading.Event())


@pytest.fixture
def slow():
    strategy = Slow()
    yield strategy
    strategy.let_go.set()


async def started(slow):
    await asyncio.wait_for(asyncio.to_thread(slow.started.wait, 10), 11)


async def refused(awaitable, reason):
    with pytest.raises(PeerError) as refusal:
        await awaitable
    assert refusal.value.reason is reason, refusal.value
    return refusal.value


async def failure_of(validator, order):
    """The failure that answers an order; the state may be refused already on its way, for the same reason."""
    work, accepted = await validator.post(order)
    early = None
    try:
        await validator.send(accepted)
    except Refused as refusal:
        early = refusal.reason.value
    failure = await validator.answer(work)
    assert early in (None, failure.reason)
    return failure


async def test_older_orders_are_stale(rig):
    async with rig() as miner:
        validator = miner.validator()
        await validator.answer(await validator.ask(validator.order(5)))
        await refused(validator.post(validator.order(4)), Reason.STALE_ORDER)
        await refused(validator.post(validator.order(5, slot=1)), Reason.STALE_ORDER)
        await validator.post(validator.order(0, attempt=1))
        await refused(validator.post(validator.order(9)), Reason.STALE_ORDER)
        other_run = miner.validator(run_id="cd" * 32)
        await other_run.post(other_run.order(0))


async def test_a_restarted_miner_refuses_older_orders_and_takes_the_same_one_again(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order(5)
        first = await validator.fetch(await validator.answer(await validator.ask(order)))
    async with rig() as miner:
        validator = miner.validator()
        await refused(validator.post(validator.order(4)), Reason.STALE_ORDER)
        await refused(validator.post(validator.order(5, slot=1)), Reason.STALE_ORDER)
        order = validator.order(5)
        again = await validator.fetch(await validator.answer(await validator.ask(order)))
        assert torch.equal(first, again)


async def test_a_newer_order_of_the_same_validator_replaces_the_older_one(rig, slow):
    async with rig(slow) as miner:
        validator = miner.validator()
        older = await validator.ask(validator.order(0))
        await started(slow)
        poll = asyncio.create_task(validator.answer(older))
        await asyncio.sleep(0.05)
        newer, accepted = await validator.post(validator.order(1, seed=4))
        assert slow.stopped == 1
        assert (await poll).reason == "cancelled"
        await refused(validator.client.wait(older, 0), Reason.UNKNOWN_WORK)
        slow.let_go.set()
        await validator.send(accepted)
        assert (await validator.answer(newer)).work_id == newer


async def test_another_validator_waits_its_turn(rig, slow):
    async with rig(slow) as miner:
        first, second = miner.validator(1), miner.validator(2)
        order = first.order(0)
        work = await first.ask(order)
        await refused(second.post(second.order(0)), Reason.BUSY)
        await started(slow)
        await refused(second.post(second.order(0)), Reason.BUSY)
        slow.let_go.set()
        await first.answer(work)
        await refused(second.post(second.order(0)), Reason.BUSY)  # the answer is not fetched yet
        await first.client.deliver_receipt(first.receipt(work, order))
        await second.answer(await second.ask(second.order(0)))


async def test_an_answer_nobody_asks_for_does_not_keep_others_out(rig, monkeypatch):
    monkeypatch.setattr(service, "_HOLD_SECONDS", 0.1)
    async with rig() as miner:
        first, second = miner.validator(1), miner.validator(2)
        await first.answer(await first.ask(first.order(0)))
        await asyncio.sleep(0.15)
        await second.answer(await second.ask(second.order(0)))


async def test_a_validator_that_sends_nothing_does_not_keep_others_out(rig, monkeypatch):
    """A day's budget and no blobs: one that was killed in mid-round, or means it."""
    monkeypatch.setattr(service, "_HOLD_SECONDS", 0.2)
    async with rig() as miner:
        first, second = miner.validator(1), miner.validator(2)
        held, _ = await first.post(first.order(0, budget_seconds=86_400.0))
        await refused(second.post(second.order(0)), Reason.BUSY)
        await asyncio.sleep(0.25)
        await second.answer(await second.ask(second.order(0)))
        await refused(first.client.wait(held, 0), Reason.UNKNOWN_WORK)


async def test_bytes_that_arrive_keep_others_out(rig, monkeypatch):
    monkeypatch.setattr(service, "_HOLD_SECONDS", 0.3)
    async with rig() as miner:
        first, second = miner.validator(1), miner.validator(2)
        _, accepted = await first.post(first.order(0))
        blob = first.blobs[accepted.lacks[-1].digest]
        reader, writer = await upload(first, miner.address.port, blob)
        body = b"".join(blob.slices())
        for start in range(0, 60, 10):  # all of it header
            writer.write(body[start : start + 10])
            await asyncio.sleep(0.1)
            await refused(second.post(second.order(0)), Reason.BUSY)
        writer.write(body[60:])
        assert b"204" in await reader.readline()
        writer.close()


async def upload(validator, port, blob):
    """A connection on which the headers of an upload have gone out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    target = f"/v1/blobs/{blob.ref.digest}"
    headers = validator.signer.headers("PUT", target, receiver=validator.miner.hotkey)
    lines = [f"PUT {target} HTTP/1.1", "Host: axon", f"Content-Length: {blob.ref.length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
    return reader, writer


async def test_an_answer_that_is_being_fetched_keeps_others_out_however_long_it_takes(rig, monkeypatch):
    monkeypatch.setattr(service, "_HOLD_SECONDS", 0.2)
    shape = ModelShape(n_layer=1, n_head=1, n_embd=64, block_size=16)  # 13 MB: more than the buffers on the way hold
    async with rig() as miner:
        first, second = miner.validator(1, shape=shape), miner.validator(2, shape=shape)
        contribution = await first.answer(await first.ask(first.order(0)))
        reader, writer = await asyncio.open_connection("127.0.0.1", miner.address.port, limit=1 << 16)
        target = f"/v1/blobs/{contribution.blob.digest}"
        headers = first.signer.headers("GET", target, receiver=first.miner.hotkey)
        lines = [f"GET {target} HTTP/1.1", "Host: axon", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.3)
        await refused(second.post(second.order(0)), Reason.BUSY)
        await reader.readexactly(contribution.blob.length)
        await refused(second.post(second.order(0)), Reason.BUSY)  # its receipt may be on its way
        await asyncio.sleep(0.3)
        await second.post(second.order(0))
        writer.close()


async def test_one_validator_sees_nothing_of_anothers_work(rig):
    async with rig() as miner:
        first, second = miner.validator(1), miner.validator(2)
        order = first.order()
        work, accepted = await first.post(order)
        blob = first.blobs[accepted.lacks[0].digest]
        await refused(second.client.put_blob(blob, 0), Reason.UNKNOWN_BLOB)
        await refused(second.client.wait(work, 0), Reason.UNKNOWN_WORK)
        await refused(second.client.cancel(work), Reason.UNKNOWN_WORK)
        await first.send(accepted)
        contribution = await first.answer(work)
        await refused(second.fetch(contribution), Reason.UNKNOWN_BLOB)
        await second.client.deliver_receipt(second.receipt(work, order))
        await first.fetch(contribution)


async def test_cancel_ends_a_computation_at_once(rig, slow):
    async with rig(slow) as miner:
        validator = miner.validator()
        order = validator.order()
        work = await validator.ask(order)
        await started(slow)
        begin = time.monotonic()
        await validator.client.cancel(work)
        assert time.monotonic() - begin < 1
        assert slow.stopped == 1
        await refused(validator.client.wait(work, 0), Reason.UNKNOWN_WORK)
        slow.let_go.set()
        again, accepted = await validator.post(order)  # called off, then wanted after all: worked on anew
        assert (again, accepted.lacks) == (work, ())
        assert (await validator.answer(work)).work_id == work


async def test_a_miner_that_ends_in_the_middle_of_its_work_has_not_failed(rig, slow, monkeypatch):
    """As little as one that is killed: whoever waits for its answer is told that the link is about to go."""
    close, said = Miner.close, []

    async def closing(miner):
        asking = asyncio.ensure_future(miner.wait(work, validator.signer.hotkey, 5.0))
        await asyncio.sleep(0)
        await close(miner)
        said.extend(await asyncio.gather(asking, return_exceptions=True))

    async with rig(slow) as miner:
        validator = miner.validator()
        work = await validator.ask(validator.order())
        await started(slow)
        monkeypatch.setattr(Miner, "close", closing)
    assert [error.reason for error in said] == [Reason.CUT_OFF]


async def test_a_real_computation_is_cancelled_within_a_block(rig, source, signers):
    shape = ModelShape(n_layer=4, n_head=4, n_embd=64, block_size=64)
    corpus = Corpus(source, build_manifest(source, DATA, 64, 7))
    async with rig() as miner:
        validator = miner.validator(shape=shape)
        validator.corpus = corpus
        order = validator.order(n=32)
        work = await validator.ask(order)
        await asyncio.sleep(0.3)
        begin = time.monotonic()
        await validator.client.cancel(work)
        assert time.monotonic() - begin < 2


async def test_a_computation_that_does_not_stop_keeps_the_miner_busy(rig, monkeypatch):
    monkeypatch.setattr(service, "_STOP_SECONDS", 0.1)
    stubborn = Slow(obedient=False)
    async with rig(stubborn) as miner:
        validator = miner.validator()
        work = await validator.ask(validator.order(0))
        await started(stubborn)
        await validator.client.cancel(work)
        await refused(validator.post(validator.order(1)), Reason.BUSY)
        stubborn.let_go.set()
        async with asyncio.timeout(5):
            while True:
                try:
                    work = await validator.ask(validator.order(1))
                    break
                except Refused:
                    await asyncio.sleep(0.02)
        await validator.answer(work)


async def test_a_computation_cancelled_twice_still_writes_and_keeps_the_miner_busy(rig, monkeypatch, caplog):
    monkeypatch.setattr(service, "_STOP_SECONDS", 0.1)
    stubborn = Slow(obedient=False)
    async with rig(stubborn) as miner:
        validator, other = miner.validator(1), miner.validator(2)
        order = validator.order(0, budget_seconds=0.5)
        work = await validator.ask(order)
        await started(stubborn)
        await asyncio.sleep(0.6)  # the budget is spent: the first
        for _ in range(2):
            await validator.client.cancel(work)
        await refused(validator.post(order), Reason.BUSY)
        await refused(validator.post(validator.order(1)), Reason.BUSY)
        await refused(other.post(other.order(0)), Reason.BUSY)
        assert (await validator.client.wait(work, 0)).state == "pending"
        stubborn.let_go.set()
        assert (await validator.answer(work)).reason == "cancelled"
        await validator.answer(await validator.ask(validator.order(1)))
    gc.collect()
    assert not caplog.records  # of an exception that nobody retrieved


def test_a_computation_that_does_not_stop_does_not_hold_up_the_exit(rig, monkeypatch):
    monkeypatch.setattr(service, "_STOP_SECONDS", 0.1)
    begun, release = threading.Event(), threading.Event()

    def deaf(model, windows, *, out, stop):
        begun.set()
        release.wait(10)
        return Result(1.0, 64)

    async def leave():
        async with rig(deaf) as miner:
            validator = miner.validator()
            await validator.ask(validator.order())
            await asyncio.to_thread(begun.wait, 10)

    with asyncio.Runner() as runner:
        runner.run(leave())
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    release.set()


async def test_the_budget_is_the_miners_own_limit(rig, slow):
    async with rig(slow) as miner:
        validator = miner.validator()
        silent, _ = await validator.post(validator.order(0, budget_seconds=0.1))
        assert (await validator.answer(silent)).reason == "timed_out"
        order = validator.order(1, budget_seconds=0.3)
        work = await validator.ask(order)
        assert (await validator.answer(work)).reason == "late"
        assert slow.stopped == 1
        slow.let_go.set()
        await validator.post(order)  # asked again, it gets its time again
        assert (await validator.answer(work)).work_id == work


async def test_a_long_poll_returns_when_the_answer_is_there_or_its_time_is_up(rig, slow):
    async with rig(slow) as miner:
        validator = miner.validator()
        work = await validator.ask(validator.order())
        begin = time.monotonic()
        assert (await validator.client.wait(work, 1)).state == "pending"
        assert 0.9 < time.monotonic() - begin < 2
        poll = asyncio.create_task(validator.client.wait(work, 30))
        await asyncio.sleep(0.1)
        slow.let_go.set()
        begin = time.monotonic()
        assert (await poll).state == "done"
        assert time.monotonic() - begin < 2


async def test_the_event_loop_answers_while_computing(rig, slow):
    async with rig(slow) as miner:
        validator = miner.validator()
        await validator.ask(validator.order())
        await started(slow)
        begin = time.monotonic()
        for _ in range(20):
            await validator.client.introduce()
        assert time.monotonic() - begin < 2


async def test_closing_ends_a_computation(rig, slow):
    async with rig(slow) as miner:
        validator = miner.validator()
        await validator.ask(validator.order())
        await started(slow)
    assert slow.stopped == 1


async def test_a_state_that_is_not_the_parent_is_refused(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order(parent="9" * 64)
        assert (await validator.answer(await validator.ask(order))).reason == "wrong_state"


async def test_a_corrupted_state_can_be_sent_again(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        work, accepted = await validator.post(order)
        good = validator.blobs[order.state[0].digest]
        bad = bytearray(good.data)
        bad[100] ^= 1
        await validator.client.put_blob(validator.blobs[order.assignment.manifest], 0)
        await refused(
            validator.client.put_blob(Blob(good.ref, good.header, memoryview(bad)), 0), Reason.DIGEST_MISMATCH
        )
        _, accepted = await validator.post(order)
        assert [(lack.digest, lack.have) for lack in accepted.lacks] == [(good.ref.digest, 0)]
        await validator.send(accepted)
        assert (await validator.answer(work)).work_id == work


async def test_a_state_of_another_shape_is_refused_at_its_header(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        await validator.post(order)
        good = validator.blobs[order.state[0].digest]
        header = bytes(good.header).replace(b"wte.weight", b"wte.heavy!")
        await refused(validator.client.put_blob(Blob(good.ref, header, good.data), 0), Reason.WRONG_NAMES)


async def test_a_manifest_of_other_text_is_refused(rig):
    async with rig() as miner:
        validator = miner.validator()
        true = validator.corpus.manifest
        other = dataclasses.replace(true, source="another")
        share = validator.order().assignment
        await self_made(validator, other, share, 0, "wrong_manifest")
        await self_made(validator, None, share, 1, "wrong_manifest")
        order = validator.order(2)
        assert (await validator.answer(await validator.ask(order))).round == 2


async def self_made(validator, manifest, share, round, reason):
    """Order with a manifest of our own making and see the failure it gets."""
    raw = b"[]" if manifest is None else manifest.to_bytes()
    blob = Blob.of("json", b"", memoryview(raw))
    validator.blobs[blob.ref.digest] = blob
    assignment = msgspec.structs.replace(share, manifest=blob.ref.digest, manifest_length=blob.ref.length)
    work, accepted = await validator.post(validator.order(round, assignment=assignment))
    await validator.client.put_blob(blob, 0)
    assert (await validator.answer(work)).reason == reason
    for lack in accepted.lacks:
        if lack.digest != blob.ref.digest:  # the state need not be sent any more, and is refused for that reason
            refusal = await refused(validator.client.put_blob(validator.blobs[lack.digest], 0), Reason(reason))
            assert refusal.detail


@pytest.mark.parametrize("change", [{"slot": 1}, {"slot": 99}, {"windows": ((10_000,),)}])
async def test_an_assignment_the_scheme_does_not_give_is_refused(rig, change):
    async with rig() as miner:
        validator = miner.validator()
        share = validator.order(n=1).assignment
        order = validator.order(n=1, assignment=msgspec.structs.replace(share, **change))
        assert (await failure_of(validator, order)).reason == "wrong_assignment"


async def test_windows_longer_than_the_context_are_refused(rig):
    short = ModelShape(n_layer=1, n_head=1, n_embd=8, block_size=8)
    async with rig() as miner:
        validator = miner.validator(shape=short)
        assert (await failure_of(validator, validator.order())).reason == "wrong_assignment"


async def test_text_that_cannot_be_read_is_a_typed_failure(rig, monkeypatch):
    def unreadable(_self, _pool, _page):
        raise CorpusError("sotu.txt: cannot be read")

    monkeypatch.setattr("fedgpt2.data.sample.SampleSource.documents", unreadable)
    async with rig() as miner:
        validator = miner.validator()
        failure = await failure_of(validator, validator.order())
        assert (failure.reason, failure.detail) == ("data_unavailable", "sotu.txt: cannot be read")


async def test_another_model_takes_new_buffers(rig):
    async with rig() as miner:
        validator = miner.validator()
        await validator.answer(await validator.ask(validator.order(0)))
        validator.shape = ModelShape(n_layer=2, n_head=2, n_embd=16, block_size=16)
        work = await validator.ask(validator.order(1))
        contribution = await validator.answer(work)
        assert (await validator.fetch(contribution)).numel() > 800_000


async def test_no_memory_is_a_typed_refusal(rig, monkeypatch):
    def no_memory(*_arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    async with rig() as miner:
        validator = miner.validator()
        monkeypatch.setattr("fedgpt2.miner.memory.FlatState", no_memory)
        await refused(validator.post(validator.order()), Reason.UNSUPPORTED_MODEL)
        monkeypatch.undo()
        await validator.answer(await validator.ask(validator.order()))


async def test_a_body_in_another_tensor_order_is_understood(rig):
    import json
    import struct

    async with rig() as miner:
        validator = miner.validator()
        weights = initialise(SHAPE, 3)
        entries, data = {}, b""
        for name, view in sorted(weights.views.items(), reverse=True):
            raw = view.contiguous().numpy().tobytes()
            entries[name] = {
                "dtype": "F32",
                "shape": list(view.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        text = json.dumps(entries).encode()
        blob = Blob.of("fp32", struct.pack("<Q", len(text)) + text, memoryview(data))
        validator.blobs[blob.ref.digest] = blob
        for round in range(2):
            order = validator.order(round, weights=weights, state=(blob.ref,))
            work = await validator.ask(order)
            shuffled = await validator.fetch(await validator.answer(work))
        straight = validator.order(1, weights=weights, attempt=1)
        assert torch.equal(shuffled, await validator.fetch(await validator.answer(await validator.ask(straight))))


async def wait_for_ever(validator, work):
    while True:
        await validator.client.wait(work, 5)


async def test_an_unforeseen_error_ends_the_program(rig):
    def buggy(model, windows, *, out, stop):
        raise KeyError("a bug")

    context = rig(buggy)
    miner = await context.__aenter__()
    validator = miner.validator()
    work = await validator.ask(validator.order())
    with pytest.raises(PeerError):
        await wait_for_ever(validator, work)
    with pytest.raises(KeyError):
        await context.__aexit__(None, None, None)


async def test_a_full_disk_ends_the_program_with_its_line(rig, monkeypatch):
    context = rig()
    miner = await context.__aenter__()
    validator = miner.validator()

    def full(*_arguments):
        raise DiskFullError("no space left")

    monkeypatch.setattr(OrderJournal, "record", full)
    refusal = await refused(validator.post(validator.order()), Reason.COMPUTE_FAILED)
    assert "space" not in refusal.detail
    with pytest.raises(DiskFullError):
        await context.__aexit__(None, None, None)


async def test_orders_that_cannot_be_met_are_refused_when_posted(rig):
    async with rig(limits=MinerLimits(model_parameters=100)) as miner:
        validator = miner.validator()
        await refused(validator.post(validator.order()), Reason.UNSUPPORTED_MODEL)
    async with rig() as miner:
        validator = miner.validator()
        for changes, reason in (
            ({"strategy": "other"}, Reason.UNSUPPORTED_STRATEGY),
            ({"answer_codecs": ("other",)}, Reason.UNSUPPORTED_CODEC),
            ({"caps": Caps(answer_bytes=5)}, Reason.TOO_LARGE),
            ({"receiver": validator.signer.hotkey}, Reason.WRONG_RECEIVER),
            ({"v": 2}, Reason.UNSUPPORTED_VERSION),
        ):
            await refused(validator.post(validator.order(**changes)), reason)
        assert not any("windows from" in line for line in miner.said)


def test_the_manifest_is_read_once(corpus, source):
    library = MinerCorpus(source)
    raw = corpus.manifest.to_bytes()
    assert library._opened(corpus.manifest.digest(), raw) is library._opened(corpus.manifest.digest(), b"")


def test_a_refused_manifest_leaves_the_reading_ahead_as_it_was(corpus, source, tmp_path):
    library = MinerCorpus(source, Store.open(str(tmp_path), 1.0))
    digest, raw = corpus.manifest.digest(), corpus.manifest.to_bytes()
    library._opened(digest, raw)
    for wrong in (b"[]", dataclasses.replace(corpus.manifest, source="another").to_bytes()):
        with pytest.raises(Refused) as refusal:
            library._opened(Digest("9" * 64), wrong)
        assert refusal.value.reason is Reason.WRONG_MANIFEST
    opened = library._opened(digest, raw)
    opened.load_ahead(0, [0], 4)
    assert opened.wait(30)
    assert opened.cache.store.names(opened.cache.kind)
    library.close()


def test_an_order_that_was_called_off_does_not_wait_for_a_page_that_others_fetch(source, signers, tmp_path):
    whole = Corpus(source, build_manifest(source, DATA, SHAPE.block_size, 7), Store.open(str(tmp_path), 1.0))
    order = Validator(signers[1], signers[0], whole, client=None).order()
    library, stop = MinerCorpus(source, whole.cache.store), threading.Event()
    whole.cache.store.remove(whole.cache.kind, name := f"assign-{order.assignment.pages[0]:08d}.u16")
    threading.Timer(0.2, stop.set).start()
    with whole.cache.store.turn("pages", f"{whole.cache.kind}/{name}"), pytest.raises(Refused) as refusal:
        library.windows(SimpleNamespace(order=order), whole.manifest.to_bytes(), stop)
    assert refusal.value.reason is Reason.CANCELLED


class Halting:
    """A source during whose first page something happens."""

    def __init__(self, source, happens):
        self._source, self._happens, self.pages = source, happens, []

    def __getattr__(self, name):
        return getattr(self._source, name)

    def documents(self, pool, page):
        if not self.pages:
            self._happens()
        self.pages.append(page)
        return self._source.documents(pool, page)


async def test_the_text_of_an_order_that_was_called_off_is_not_read_on(source, signers, tmp_path):
    begun, release = threading.Event(), threading.Event()
    text = Halting(source, lambda: (begun.set(), release.wait(10)))
    whole = Corpus(source, build_manifest(source, DATA, SHAPE.block_size, 7))
    tools = MinerContext(signers[0], MinerCorpus(text), Trainer(CPU, EXACT), HonestEncoder())
    journal = OrderJournal(tmp_path / "miner")
    miner = Miner(tools, journal, MinerLimits(), lambda _: None)
    validator = Validator(signers[1], signers[0], whole, client=None)
    order = validator.order(n=10_000)
    assert len(order.assignment.pages) == 2
    work = await miner.take(signers[1].seal("order", order), signers[1].hotkey)
    manifest = miner.delivery(order.assignment.manifest, signers[1].hotkey)
    await manifest.incoming.feed(whole.manifest.to_bytes())
    manifest.complete(await manifest.incoming.finish())
    await asyncio.to_thread(begun.wait, 10)
    (reading,) = (thread for thread in threading.enumerate() if thread.name == "windows")
    await miner.cancel(work.work_id, signers[1].hotkey)
    release.set()
    await asyncio.to_thread(reading.join, 10)
    journal.close()
    assert text.pages == list(order.assignment.pages[:1])


async def test_a_result_is_not_needed_when_nobody_wants_it(rig):
    """A strategy that finishes although it was told to stop gives no answer."""
    begun, release = threading.Event(), threading.Event()

    def finishing(model, windows, *, out, stop):
        begun.set()
        stop.wait(10)
        release.set()
        return Result(1.0, 64)

    async with rig(finishing) as miner:
        validator = miner.validator()
        work = await validator.ask(validator.order())
        await asyncio.to_thread(begun.wait, 10)
        await validator.client.cancel(work)
        assert release.is_set()
        await refused(validator.client.wait(work, 0), Reason.UNKNOWN_WORK)
