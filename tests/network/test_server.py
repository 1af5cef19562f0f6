"""The listening socket: its real port, its failures in one line, and an end that does not wait."""

import asyncio
import time

import pytest
from aiohttp import web

from fedgpt2.errors import PortInUseError, SetupError
from fedgpt2.network.http import Server


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
