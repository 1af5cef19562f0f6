"""Who may call a miner and what is refused before a body is read: real sockets, sometimes raw ones."""

import asyncio
import json
import time

import pytest
from aiohttp import ClientSession

from fedgpt2.config import MinerLimits
from fedgpt2.errors import Culprit, PeerError, Reason, Refused
from fedgpt2.link.blobs import Blob
from fedgpt2.link.http_server import Server
from fedgpt2.miner.journal import OrderJournal
from fedgpt2.miner.service import Miner
from fedgpt2.protocol.messages import encode
from fedgpt2.protocol.statuses import http_status


async def refused(awaitable, reason):
    with pytest.raises(PeerError) as refusal:
        await awaitable
    assert refusal.value.reason is reason, refusal.value


async def test_info_names_what_the_miner_speaks(rig):
    async with rig() as miner:
        info = await miner.validator().client.introduce()
        assert info.versions == (1,)
        assert info.state_codecs == info.gradient_codecs == ("fp32", "bf16")
        assert info.strategies == ("mean_gradient",)
        assert info.message_bytes == MinerLimits().message_bytes


async def request(miner, method, target, body=b"", headers=None, signer=1):
    """Status and refusal reason of a request of our own making, signed unless headers are given."""
    if headers is None:
        headers = miner.signers[signer].headers(method, target, body, receiver=miner.signers[0].hotkey)
    async with (
        ClientSession() as session,
        session.request(method, miner.address.url + target, data=body or None, headers=headers) as response,
    ):
        text = await response.text()
        return response.status, json.loads(text)["reason"] if text else None


@pytest.mark.parametrize(
    ("method", "target", "status", "reason"),
    [
        ("GET", "/v1/info", 400, "bad_message"),
        ("GET", "/v1/info?challenge=zz", 400, "bad_message"),
        ("GET", "/v1/work/x", 404, "unknown_work"),
        ("GET", "/v1/work/x?wait=-1", 400, "bad_message"),
        ("GET", "/v1/work/x?wait=forever", 400, "bad_message"),
        ("DELETE", "/v1/work/x", 404, "unknown_work"),
        ("GET", "/v1/blobs/" + "0" * 64, 404, "unknown_blob"),
        ("PUT", "/v1/blobs/" + "0" * 64, 404, "unknown_blob"),
        ("GET", "/v2/info", 404, "bad_message"),
        ("PATCH", "/v1/work", 405, "bad_message"),
    ],
)
async def test_refusals_are_typed(rig, method, target, status, reason):
    async with rig() as miner:
        assert await request(miner, method, target) == (status, reason)


async def test_every_route_but_info_wants_a_signature(rig):
    async with rig() as miner:
        for method, target in (
            ("POST", "/v1/work"),
            ("GET", "/v1/work/x"),
            ("DELETE", "/v1/work/x"),
            ("PUT", "/v1/blobs/x"),
            ("GET", "/v1/blobs/x"),
            ("POST", "/v1/receipts"),
        ):
            assert await request(miner, method, target, headers={}) == (400, "bad_message")
            forged = miner.signers[1].headers(method, "/v1/elsewhere", b"x", receiver=miner.signers[0].hotkey)
            assert await request(miner, method, target, b"x", headers=forged) == (401, "bad_signature")


async def test_other_receivers_replays_and_proxies_are_refused(rig):
    async with rig() as miner:
        hotkey = miner.signers[0].hotkey
        elsewhere = miner.signers[1].headers("GET", "/v1/work/x", receiver=miner.signers[2].hotkey)
        assert await request(miner, "GET", "/v1/work/x", headers=elsewhere) == (401, "wrong_receiver")
        once = miner.signers[1].headers("GET", "/v1/work/x", receiver=hotkey)
        assert await request(miner, "GET", "/v1/work/x", headers=once) == (404, "unknown_work")
        assert await request(miner, "GET", "/v1/work/x", headers=once) == (401, "replay")
        via = {**miner.signers[1].headers("GET", "/v1/work/x", receiver=hotkey), "Via": "1.1 proxy"}
        assert await request(miner, "GET", "/v1/work/x", headers=via) == (403, "forwarded")
        info = "/v1/info?challenge=" + "0" * 64
        assert await request(miner, "GET", info, headers={"X-Forwarded-For": "1.2.3.4"}) == (403, "forwarded")
        assert any("refused GET /v1/work/x of 127.0.0.1: replay" in line for line in miner.said)


async def raw(miner, head):
    """The answer to a request head sent as it is."""
    reader, writer = await asyncio.open_connection(miner.address.host, miner.address.port)
    writer.write(head + b"Host: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


async def test_bytes_that_are_no_text_are_refused_like_any_others(rig, caplog):
    async with rig() as miner:
        headers = miner.signers[1].headers("GET", "/v1/work/x", receiver="nobody")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        answer = await raw(miner, b"GET /v1/work/x HTTP/1.1\r\n" + lines.replace(b"nobody", b"\xff"))
        assert b" 401 " in answer.splitlines()[0]
        assert b'"reason":"wrong_receiver"' in answer
        answer = await raw(miner, b"GET /v1/work/\xff HTTP/1.1\r\n" + lines)
        assert b" 400 " in answer.splitlines()[0]
        await raw(miner, b"GET /v1/work/%1B HTTP/1.1\r\n")
        assert all(line.isprintable() for line in miner.said)
    assert not caplog.records


async def test_what_comes_while_the_miner_stops_is_answered_and_nobodys_fault(rig, monkeypatch, tmp_path):
    closed, close, stop, answers = asyncio.Event(), Miner.close, Server.stop, []

    async def closing(miner):
        await close(miner)
        closed.set()

    async def stopping(server):
        await closed.wait()
        answers.extend([await request(miner, "POST", target, encode(said)) for target, said in sent.items()])
        await stop(server)

    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        sent = {"/v1/work": validator.signer.seal("order", order), "/v1/receipts": validator.receipt("0" * 64, order)}
        monkeypatch.setattr(Miner, "close", closing)
        monkeypatch.setattr(Server, "stop", stopping)
    assert answers == [(400, "cut_off"), (204, None)]
    assert Reason.CUT_OFF.culprit is Culprit.NETWORK
    journal = OrderJournal(tmp_path / "miner")
    assert journal.newest(order) is None
    assert not journal.keep_receipt(sent["/v1/receipts"])  # it is there
    journal.close()


async def test_only_named_validators_may_call(rig, signers):
    async with rig(validators=(signers[1].hotkey,)) as miner:
        await miner.validator(1).post(miner.validator(1).order())
        await refused(miner.validator(2).post(miner.validator(2).order()), Reason.UNKNOWN_CALLER)


async def test_an_order_of_another_signer_or_kind_is_refused(rig):
    async with rig() as miner:
        first, second = miner.validator(1), miner.validator(2)
        envelope = first.signer.seal("order", first.order())
        await refused(second.client.post_order(envelope), Reason.BAD_SIGNATURE)
        receipt = first.receipt("0" * 64, first.order())
        await refused(first.client.post_order(receipt), Reason.BAD_MESSAGE)
        await refused(first.client.deliver_receipt(envelope), Reason.BAD_MESSAGE)
        await refused(second.client.deliver_receipt(receipt), Reason.BAD_SIGNATURE)
        assert await request(miner, "POST", "/v1/work", b"{}") == (400, "bad_message")


async def test_a_receipt_for_somebody_else_is_refused_and_not_stored(rig, tmp_path):
    async with rig() as miner:
        validator = miner.validator()
        receipt = validator.receipt("0" * 64, validator.order(), receiver=miner.signers[2].hotkey)
        await refused(validator.client.deliver_receipt(receipt), Reason.WRONG_RECEIVER)
    assert not (tmp_path / "miner" / "receipts.jsonl").exists()


async def test_a_receipt_with_a_refusal_says_why(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        receipt = validator.receipt(
            "0" * 64, order, status="refused", reason="non_finite", detail="NaN\x1b", weight=0.0
        )
        await validator.client.deliver_receipt(receipt)
        assert any("refused by" in line and "non_finite: NaN\ufffd)" in line for line in miner.said)


async def test_blobs_no_order_names_are_refused(rig):
    async with rig() as miner:
        validator = miner.validator()
        stray = Blob.of("json", b"", memoryview(b"hello"))
        await refused(validator.client.put_blob(stray, 0), Reason.UNKNOWN_BLOB)
        await validator.post(validator.order())
        await refused(validator.client.put_blob(stray, 0), Reason.UNKNOWN_BLOB)


async def test_a_message_over_the_limit_is_refused_before_it_is_read(rig):
    async with rig(limits=MinerLimits(message_bytes=1000)) as miner:
        body = b"x" * 1001
        assert await request(miner, "POST", "/v1/work", body) == (413, "too_large")


async def test_a_broken_upload_goes_on_from_where_it_was(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        work, accepted = await validator.post(order)
        state = validator.blobs[order.state[0].digest]
        whole = bytes(state.header) + bytes(state.data)
        target = f"/v1/blobs/{state.ref.digest}"
        headers = miner.signers[1].headers("PUT", target, receiver=miner.signers[0].hotkey)
        _, writer = await asyncio.open_connection(miner.address.host, miner.address.port)
        lines = [f"PUT {target} HTTP/1.1", "Host: x", f"Content-Length: {len(whole)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + whole[:500_000])
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        _, accepted = await validator.post(order)
        have = {lack.digest: lack.have for lack in accepted.lacks}[state.ref.digest]
        assert 0 < have <= 500_000
        before = validator.client.bytes_sent
        await validator.send(accepted)
        assert (await validator.answer(work)).work_id == work
        manifest = validator.blobs[order.assignment.manifest]
        assert validator.client.bytes_sent - before == len(whole) - have + manifest.ref.length


async def test_an_answer_can_be_fetched_from_the_middle_on(rig):
    async with rig() as miner:
        validator = miner.validator()
        contribution = await validator.answer(await validator.ask(validator.order()))
        whole = await validator.fetch(contribution)
        target = f"/v1/blobs/{contribution.blob.digest}"
        headers = miner.signers[1].headers("GET", target, receiver=miner.signers[0].hotkey)
        async with (
            ClientSession() as session,
            session.get(
                miner.address.url + target, headers={**headers, "Range": f"bytes={contribution.blob.length - 8}-"}
            ) as response,
        ):
            assert response.status == 206
            assert await response.read() == whole.numpy().tobytes()[-8:]


async def test_a_reader_is_cut_when_the_gradient_is_about_to_change(rig, signers):
    """A validator that reads so slowly that its own next order overtakes it gets no torn bytes."""
    from fedgpt2.types import ModelShape

    large = ModelShape(n_layer=1, n_head=1, n_embd=128, block_size=16)
    async with rig() as miner:
        validator = miner.validator(shape=large)
        contribution = await validator.answer(await validator.ask(validator.order(0, n=1)))
        target = f"/v1/blobs/{contribution.blob.digest}"
        headers = signers[1].headers("GET", target, receiver=signers[0].hotkey)
        reader, writer = await asyncio.open_connection(miner.address.host, miner.address.port, limit=1 << 16)
        lines = [f"GET {target} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        await validator.answer(await validator.ask(validator.order(1, n=1)))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(contribution.blob.length)
        writer.close()
        with pytest.raises(Refused):
            await validator.fetch(contribution)


async def test_an_order_is_named_by_the_bytes_it_came_in(rig):
    async with rig() as miner:
        validator = miner.validator()
        order = validator.order()
        work, accepted = await validator.post(order)
        assert accepted.work_id == work
        assert encode(order).decode() == validator.signer.seal("order", order).payload


def post_head(miner, headers, length, *more):
    """Head of a POST /v1/work with a body of `length` bytes, for a raw socket."""
    lines = [*(f"{name}: {value}" for name, value in headers.items()), f"Content-Length: {length}", "Host: x", *more]
    return "\r\n".join(["POST /v1/work HTTP/1.1", *lines]).encode() + b"\r\n\r\n"


async def test_a_signature_is_checked_before_a_body_is_invited(rig):
    async with rig() as miner:
        hotkey = miner.signers[0].hotkey
        good = miner.signers[1].headers("POST", "/v1/work", b"{}", receiver=hotkey)
        forged = {**good, "X-Bittensor-Signature": "0x" + "ab" * 64}
        reader, writer = await asyncio.open_connection(miner.address.host, miner.address.port)
        writer.write(post_head(miner, forged, 2, "Expect: 100-continue"))
        answer = await reader.read()
        assert answer.splitlines()[0].split()[1] == b"401"
        assert b"100 Continue" not in answer
        writer.close()


async def test_a_body_other_than_announced_is_refused_and_its_headers_are_used_up(rig):
    async with rig() as miner:
        headers = miner.signers[1].headers("POST", "/v1/work", b"{}", receiver=miner.signers[0].hotkey)
        assert await request(miner, "POST", "/v1/work", b"[]", headers) == (401, "bad_signature")
        assert await request(miner, "POST", "/v1/work", b"{}", headers) == (401, "replay")


async def test_a_sender_that_announces_nothing_is_verified_after_its_body(rig):
    async with rig() as miner:
        validator = miner.validator()
        body = encode(validator.signer.seal("order", validator.order()))
        headers = validator.signer.headers("POST", "/v1/work", body, receiver=miner.signers[0].hotkey)
        del headers["Content-Digest"]
        assert await request(miner, "POST", "/v1/work", body[:-1], headers) == (401, "bad_signature")
        async with (
            ClientSession() as session,
            session.post(miner.address.url + "/v1/work", data=body, headers=headers) as response,
        ):
            assert response.status == 202


async def test_bodies_without_a_checked_signature_are_eight_mebibytes_at_most(rig):
    """40 senders announce 1 MiB each and send half: 8 are read, the others refused; who announces its digest is not."""
    async with rig(limits=MinerLimits(request_seconds=2.0)) as miner:
        length = MinerLimits().message_bytes

        async def push():
            headers = miner.signers[1].headers("POST", "/v1/work", b"{}", receiver=miner.signers[0].hotkey)
            del headers["Content-Digest"]
            reader, writer = await asyncio.open_connection(miner.address.host, miner.address.port)
            writer.write(post_head(miner, headers, length) + bytes(length // 2))
            answer = await reader.read(1000)
            writer.transport.abort()
            return int(answer.split()[1])

        pushing = asyncio.gather(*(push() for _ in range(40)))
        await asyncio.sleep(0.5)
        validator = miner.validator()
        assert await validator.ask(validator.order())
        statuses = await pushing
        assert statuses.count(http_status(Reason.BUSY)) == 32
        assert statuses.count(http_status(Reason.TIMED_OUT)) == 8  # what they held is free again
        assert await push() == http_status(Reason.TIMED_OUT)


async def test_the_loop_does_not_wait_for_the_journal(rig, monkeypatch):
    """Every call of the journal takes 0.3 s; a timer of the loop is on time, and the order is on disk when answered."""
    slow = {name: getattr(OrderJournal, name) for name in ("newest", "record", "keep_receipt")}
    done = []

    def slowed(name):
        def method(*arguments):
            time.sleep(0.3)
            result = slow[name](*arguments)
            done.append(name)
            return result

        return method

    for name in slow:
        monkeypatch.setattr(OrderJournal, name, slowed(name))
    late = []

    async def probe():
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            late.append(time.monotonic() - began - 0.01)

    async with rig() as miner:
        validator, probing = miner.validator(), asyncio.create_task(probe())
        order = validator.order()
        work = await validator.ask(order)
        assert done == ["newest", "record"]
        await validator.client.deliver_receipt(validator.receipt(work, order))
        assert done == ["newest", "record", "keep_receipt"]
        probing.cancel()
    assert max(late) < 0.1
