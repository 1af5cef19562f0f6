"""Vectors for what a miner in another language needs beside the messages: requests, addresses, bf16, tokens, gradient.

Rewritten only with FEDGPT2_WRITE_GOLDEN=1. Numbers of the model are computed in float64 by the numpy example.
"""

import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedgpt2 import codec
from fedgpt2.config import Gradient
from fedgpt2.data.tokenizer import encode
from fedgpt2.gradient.registry import build
from fedgpt2.identity.keys import verify
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.types import ModelShape

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "miner.json"
SEED = "11" * 32
SENDER, RECEIVER = (
    "5DtDLm5rQHShDqojQpsvcN8tRXHVFaecfDoRet1SU6BFD9Fi",
    "5Fpfx4iDtrrY99VGkQnLXASytC2y9Z3o8KUyTtD4w7o5SZcA",
)
REQUESTS = [
    ("POST", "/v1/work", b'{"kind":"order"}', 1790000000000000001),
    ("GET", f"/v1/work/{'ab' * 32}?wait=30", b"", 1790000000000000002),
    ("PUT", f"/v1/blobs/{'cd' * 32}", b"", 1790000000000000003),
]
TEXTS = [
    "We hold these truths to be self-evident",
    "don't  we'll\n\n  naïve café — 東京 🚀\t1,234.5 \n",
    "<|endoftext|>",
    " ",
]
BITS = [
    0x3F800000,
    0x3F808000,
    0x3F818000,
    0x3F808001,
    0xBF80C000,
    0x80000000,
    0x00008000,
    0x00018000,
    0x7F7F7FFF,
    0x7F7FFFFF,
]
SHAPE = ModelShape(n_layer=2, n_head=2, n_embd=4, block_size=6, vocab_size=11)
WINDOWS = np.array([[10, 3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5]])


def weights() -> np.ndarray:
    i = np.arange(sum(int(np.prod(shape)) for shape in SHAPE.schema().values()))
    return (((i * 7919) % 2003 - 1001) / 2002).astype(np.float32)


def requests() -> list[dict[str, Any]]:
    from bittensor import http_auth

    return [
        {
            "method": method,
            "target": target,
            "body": body.decode(),
            "signed_bytes": http_auth.build_payload(
                scheme="sr25519",
                method=method,
                path=target,
                body=body,
                nonce_ns=nonce,
                sender_ss58=SENDER,
                receiver_ss58=RECEIVER,
            ).decode(),
        }
        for method, target, body, nonce in REQUESTS
    ]


def addresses() -> dict[str, str]:
    from bittensor.sp_core import ss58_encode

    keys = [bytes(32), bytes(range(32)), b"\xff" * 32]
    return {key.hex(): ss58_encode(key, 42) for key in keys}


def model() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("numpy_miner", ROOT / "examples" / "numpy_miner.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flat, tensors, start = weights().astype(np.float64), {}, 0
    for name, shape in SHAPE.schema().items():
        end = start + int(np.prod(shape))
        tensors[name], start = flat[start:end].reshape(shape), end
    gpt2 = module.GPT2(tensors, SHAPE.n_head, SHAPE.n_layer)
    loss = gpt2.gradient(WINDOWS, lambda: None)
    gradient = {name: [float(f"{value:.9g}") for value in tensor.ravel()] for name, tensor in gpt2.g.items()}
    shape = {name: getattr(SHAPE, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    return {"shape": shape, "windows": WINDOWS.tolist(), "loss": loss, "gradient": gradient}


def bf16_of(bits: int) -> int:
    flat = torch.tensor([bits], dtype=torch.int64).to(torch.int32).view(torch.float32)
    return int.from_bytes(codec.get("bf16").encode(flat), "little")


def current() -> dict[str, Any]:
    return {
        "requests": requests(),
        "addresses": addresses(),
        "bf16": [[f"{bits:08x}", f"{bf16_of(bits):04x}"] for bits in BITS],
        "tokens": [[text, encode(text).tolist()] for text in TEXTS],
        "model": model(),
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    if os.environ.get("FEDGPT2_WRITE_GOLDEN") == "1":
        from bittensor.sp_core import CRYPTO_SR25519, Keypair

        pair = Keypair.create_from_seed(bytes.fromhex(SEED), CRYPTO_SR25519)
        signed = [pair.sign(request["signed_bytes"].encode()).hex() for request in requests()]
        keys = {"seed": SEED, "sender": SENDER, "receiver": RECEIVER}
        lines = (f'"{key}": {json.dumps(part, ensure_ascii=False)}' for key, part in current().items())
        text = ",\n".join((f'"keys": {json.dumps(keys)}', f'"signatures": {json.dumps(signed)}', *lines))
        GOLDEN.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
    loaded: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("part", ["requests", "addresses", "bf16", "tokens"])
def test_what_a_miner_needs_has_not_changed(golden: dict[str, Any], part: str) -> None:
    assert current()[part] == golden[part]


def test_golden_requests_verify(golden: dict[str, Any]) -> None:
    for request, signature in zip(golden["requests"], golden["signatures"], strict=True):
        assert verify(SENDER, request["signed_bytes"].encode(), bytes.fromhex(signature))


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_our_gradient_is_the_golden_one(golden: dict[str, Any], micro_batch: int) -> None:
    schema = SHAPE.schema()
    state, out = FlatState(schema, torch.from_numpy(weights())), FlatState(schema)
    strategy = build(Gradient(micro_batch=micro_batch, precision="fp32"), torch.device("cpu"))
    result = strategy(GPT2(SHAPE, state), WINDOWS, out=out, stop=threading.Event())
    assert result.loss == pytest.approx(golden["model"]["loss"], rel=1e-6)
    assert list(golden["model"]["gradient"]) == list(schema)
    for name, values in golden["model"]["gradient"].items():
        np.testing.assert_allclose(out.views[name].numpy().ravel(), values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_numpy_gradient_is_the_golden_one(golden: dict[str, Any]) -> None:
    now = model()
    assert now["loss"] == pytest.approx(golden["model"]["loss"], rel=1e-12)
    for name, values in golden["model"]["gradient"].items():
        np.testing.assert_allclose(now["gradient"][name], values, rtol=1e-7, atol=1e-12, err_msg=name)
