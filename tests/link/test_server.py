"""The listening socket: its real port, its failures in one line, and an end that does not wait."""

import asyncio
import contextlib
import socket
import time

import pytest
from aiohttp import web

from fedgpt2.errors import PortInUseError, SetupError
from fedgpt2.link.http_server import Server


async def test_a_free_port_is_taken_and_told(axon, connect):
    assert axon.port > 0
    assert (await connect(axon.port).introduce()).hotkey == axon.signer.hotkey


async def test_a_port_in_use_is_said_in_one_line(axon):
    with pytest.raises(PortInUseError, match=f"port {axon.port} of 127.0.0.1 is in use"):
        await Server(web.Application(), "127.0.0.1", axon.port).start()


async def test_an_address_that_is_not_ours_is_said_in_one_line():
    server = Server(web.Application(), "192.0.2.1", 8091)
    assert server.port == 8091
    with pytest.raises(SetupError, match=r"cannot listen on 192\.0\.2\.1:8091"):
        await server.start()


async def test_where_connections_are_many_idle_ones_make_room(connect):
    """A stranger that opens one after another takes no file from the miner, and keeps no validator out."""

    async def here(_: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.Response(text="here")

    app = web.Application()
    app.add_routes([web.get("/", here)])
    server = Server(app, "127.0.0.1", 0, most=3)
    await server.start()
    ask = b"GET / HTTP/1.1\r\nHost: axon\r\nConnection: close\r\n\r\n"
    busy, asking = await asyncio.open_connection("127.0.0.1", server.port)
    asking.write(ask)
    await asyncio.sleep(0.1)
    idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
    for reader, writer in idle:
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
    late, last = await asyncio.open_connection("127.0.0.1", server.port)
    last.write(ask)
    for reader, writer in ((busy, asking), (late, last)):
        assert (await reader.read()).endswith(b"here")
        writer.close()
    await server.stop()


async def test_who_does_not_read_its_answer_makes_room_too():
    async def here(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * (8 << 20))

    app = web.Application()
    app.add_routes([web.get("/", here)])
    server = Server(app, "127.0.0.1", 0, most=1)
    await server.start()
    loop = asyncio.get_running_loop()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        await loop.sock_connect(deaf, ("127.0.0.1", server.port))
        await loop.sock_sendall(deaf, b"GET / HTTP/1.1\r\nHost: axon\r\n\r\n")
        await asyncio.sleep(0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: axon\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        writer.transport.abort()
    await server.stop()


async def test_who_asks_and_asks_and_reads_no_answer_is_cut_off(axon, monkeypatch):
    monkeypatch.setattr("fedgpt2.link.http_server._ANSWER_SECONDS", 0.3)
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(caller, ("127.0.0.1", axon.port))
        asks = b"GET /v1/work/1 HTTP/1.1\r\nHost: axon\r\n\r\n" * 200  # refused, for it is not signed

        async def ask_on() -> None:
            while True:
                await loop.sock_sendall(caller, asks)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_on(), 20)


async def test_a_server_that_stopped_takes_no_connection():
    server = Server(web.Application(), "127.0.0.1", 0)
    assert isinstance(server._connected(), asyncio.Protocol)
    await server.stop()


async def test_stopping_does_not_wait_for_a_long_request():
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", slow)])
    server = Server(app, "127.0.0.1", 0)
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: axon\r\n\r\n")
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await server.stop()
    assert time.monotonic() - began < 3.0
    writer.close()
