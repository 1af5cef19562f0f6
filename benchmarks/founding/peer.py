"""One side of the founding design's round trip: a bittensor 10.5 axon (miner) or dendrite (validator).

Runs in its own virtual environment, started by founding_stack.py; imports nothing of fedgpt2. The request carries the
model as a dictionary of `bt.Tensor`, the answer is the same synapse with the gradients added, as the founding
prototype did it. Both sides rebuild torch tensors; nothing is computed.

What it takes to work at 498 MB: a timeout far above the default 12 s; the axon's keep-alive raised from uvicorn's 5 s,
because serialising holds the event loop longer than that and the dendrite does not retry on the dead connection; and
no look-up of one's outside address, which both constructors would make.

    python peer.py miner SCHEMA WALLETS PORT
    python peer.py validator SCHEMA WALLETS PORT HOTKEY
"""

import json
import os
import sys
from pathlib import Path

os.environ["USE_TORCH"] = "1"
replies = os.fdopen(os.dup(1), "w")  # bittensor prints on standard output
os.dup2(2, 1)

import bittensor as bt  # noqa: E402
import torch  # noqa: E402
from bittensor.utils import networking  # noqa: E402

TIMEOUT = 600.0
Tensors = dict[str, torch.Tensor]


class Gradients(bt.Synapse):
    """The founding protocol: the state goes out, the gradients come back beside it."""

    model_state: dict[str, bt.Tensor]
    gradients: dict[str, bt.Tensor] | None = None


def pack(tensors: Tensors) -> dict[str, bt.Tensor]:
    """Encode tensors as the synapse carries them: msgpack in base64 in JSON."""
    return {name: bt.Tensor.serialize(tensor) for name, tensor in tensors.items()}


def unpack(packed: dict[str, bt.Tensor]) -> Tensors:
    """Decode `pack`."""
    return {name: tensor.deserialize() for name, tensor in packed.items()}


def random_tensors(schema: dict[str, list[int]], seed: int) -> Tensors:
    """Random tensors of the schema: a state or a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in schema.items()}


def wallet_of(folder: str, name: str) -> bt.Wallet:
    """Open the wallet, or create it without a password."""
    wallet = bt.Wallet(name=name, hotkey="default", path=folder)
    if not wallet.hotkey_file.exists_on_device():
        wallet.create_new_coldkey(use_password=False, overwrite=False, suppress=True)
        wallet.create_new_hotkey(use_password=False, overwrite=False, suppress=True)
    return wallet


def memory_mb(field: str) -> float:
    """VmHWM (peak) or VmRSS (now) of this process, MB of 10^6 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def reply(**fields: object) -> None:
    """Write one JSON line to the parent."""
    print(json.dumps(fields), file=replies, flush=True)


def miner(schema: dict[str, list[int]], wallets: str, port: int) -> None:
    """Serve until standard input closes."""
    gradients = random_tensors(schema, seed=1)

    def forward(synapse: Gradients) -> Gradients:
        unpack(synapse.model_state)
        synapse.gradients = pack(gradients)
        return synapse

    wallet = wallet_of(wallets, "miner")
    axon = bt.Axon(wallet=wallet, port=port, ip="127.0.0.1", external_ip="127.0.0.1")
    axon.fast_config.host = "127.0.0.1"
    axon.fast_config.timeout_keep_alive = int(TIMEOUT)
    axon.attach(forward_fn=forward)
    axon.start()
    reply(hotkey=wallet.hotkey.ss58_address)
    for _ in sys.stdin:
        reply(peak_mb=memory_mb("VmHWM"))
    axon.stop()


def validator(schema: dict[str, list[int]], wallets: str, port: int, hotkey: str) -> None:
    """Make one round trip for each line of standard input."""
    import asyncio
    import time

    state = random_tensors(schema, seed=0)
    target = bt.AxonInfo(version=1, ip="127.0.0.1", port=port, ip_type=4, hotkey=hotkey, coldkey=hotkey)
    dendrite = bt.Dendrite(wallet_of(wallets, "validator"))

    async def round_trip() -> None:
        start = time.perf_counter()
        synapse = Gradients(model_state=pack(state))
        answer = await dendrite.forward(target, synapse, timeout=TIMEOUT, deserialize=False)
        if not answer.gradients:
            reply(error=f"{answer.dendrite.status_code} {answer.dendrite.status_message}")
            return
        received = unpack(answer.gradients)
        seconds = time.perf_counter() - start
        same = {name: list(tensor.shape) for name, tensor in received.items()} == schema
        reply(seconds=seconds, peak_mb=memory_mb("VmHWM"), complete=same)

    async def serve() -> None:
        reply(built_mb=memory_mb("VmRSS"))
        for _ in sys.stdin:  # may block: nothing runs between two lines
            await round_trip()
        await dendrite.aclose_session()

    asyncio.run(serve())


def main() -> None:
    """Run the role that the arguments name."""
    networking.get_external_ip = lambda: "127.0.0.1"
    role, schema_file, wallets, port, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    schema = json.loads(Path(schema_file).read_text())
    if role == "miner":
        miner(schema, wallets, int(port))
    else:
        validator(schema, wallets, int(port), rest[0])


if __name__ == "__main__":
    main()
