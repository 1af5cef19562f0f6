"""Baseline of `bench transport`: the same bytes over raw sockets, from and into buffers allocated once.

No framing, no names, no check of anything: what loopback TCP itself costs. Its own limit is memcpy: each byte is
copied at least twice, into the kernel and out of it.

    python -m fedgpt2.cli.bench.transport_tcp miner BYTES SEED
    python -m fedgpt2.cli.bench.transport_tcp validator BYTES PORT...
"""

import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedgpt2.cli.bench.async_worker import MEMORY
from fedgpt2.cli.bench.worker import serve

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """Take a role until standard input ends."""
    role, size, *ports = argv
    if role == "miner":
        _miner(int(size))
    else:
        _validator(int(size), [int(port) for port in ports])


def _miner(size: int) -> None:
    """Take a body, send as many bytes back, for ever."""
    server = socket.create_server(("127.0.0.1", 0))
    body = _touched(size)

    def echo() -> None:
        connection, _ = server.accept()
        with connection:
            while _receive(connection, body):
                connection.sendall(body)

    threading.Thread(target=echo, daemon=True).start()
    serve({"port": lambda: {"port": server.getsockname()[1]}, **MEMORY})


def _validator(size: int, ports: list[int]) -> None:
    state, bodies = _touched(size), [_touched(size) for _ in ports]
    connections = [socket.create_connection(("127.0.0.1", port)) for port in ports]
    with ThreadPoolExecutor(len(ports)) as pool:

        def exchange(place: int) -> None:
            connections[place].sendall(state)
            _receive(connections[place], bodies[place])

        def trip(miners: int) -> dict[str, float]:
            start = time.perf_counter()
            list(pool.map(exchange, range(miners)))
            return {"seconds": time.perf_counter() - start}

        def copy() -> dict[str, float]:
            start = time.perf_counter()
            bodies[0][:] = state
            return {"seconds": time.perf_counter() - start}

        serve({"trip": trip, "copy": copy, **MEMORY})
    for connection in connections:
        connection.close()


def _touched(size: int) -> memoryview:
    """A buffer whose pages are there already."""
    return memoryview(bytearray(b"1") * size)


def _receive(connection: socket.socket, body: memoryview) -> bool:
    """Fill `body`; False if the other side is gone."""
    have = 0
    while have < len(body):
        taken = connection.recv_into(body[have:])
        if not taken:
            return False
        have += taken
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
