"""Baseline of `bench transport`: a round trip over aiohttp with safetensors, as one would first write it.

It runs on the event loop that ours runs on, which at this size makes it a third faster than asyncio's own.

python -m fedgpt2.cli.bench.transport_aiohttp miner PRESET SEED
python -m fedgpt2.cli.bench.transport_aiohttp validator PRESET PORT...
"""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from aiohttp import ClientSession, ClientTimeout, web
from safetensors.torch import load, save
from torch import Tensor

from fedgpt2.cli.bench.async_worker import MEMORY, serve_async
from fedgpt2.config import PRESETS
from fedgpt2.event_loop import run

__all__ = ["main"]

_LARGEST = 1 << 34  # bytes; aiohttp's own limit for a body is 1 MiB
_PATIENCE = ClientTimeout(total=600)  # seconds; aiohttp's own limit is 300


def main(argv: Sequence[str]) -> int:
    """Take a role until standard input ends."""
    role, preset, *rest = argv
    if role == "miner":
        return run(lambda _: _miner(preset, int(rest[0])))
    return run(lambda _: _validator(preset, [int(port) for port in rest]))


async def _miner(preset: str, seed: int) -> int:
    gradients = _tensors(preset, seed)

    async def compute(request: web.Request) -> web.Response:
        state = load(await request.read())
        if state.keys() != gradients.keys():
            raise web.HTTPBadRequest
        return web.Response(body=save(gradients))

    app = web.Application(client_max_size=_LARGEST)
    app.router.add_post("/gradient", compute)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()

    await serve_async({"port": lambda: {"port": site.port}, **MEMORY})
    await runner.cleanup()
    return 0


async def _validator(preset: str, ports: list[int]) -> int:
    state = _tensors(preset, 0)
    async with ClientSession(timeout=_PATIENCE) as session:

        async def one(port: int, body: bytes) -> dict[str, Tensor]:
            async with session.post(f"http://127.0.0.1:{port}/gradient", data=body) as response:
                response.raise_for_status()
                return load(await response.read())

        async def trip(miners: int) -> Mapping[str, float]:
            start = time.perf_counter()
            body = save(state)
            gradients = await asyncio.gather(*(one(port, body) for port in ports[:miners]))
            seconds = time.perf_counter() - start
            if any(gradient.keys() != state.keys() for gradient in gradients):
                raise web.HTTPBadGateway
            return {"seconds": seconds}

        await serve_async({"trip": trip, **MEMORY})
    return 0


def _tensors(preset: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in PRESETS[preset].schema().items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
