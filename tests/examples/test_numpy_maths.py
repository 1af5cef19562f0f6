"""The numpy example's gradient is the exact one, and its bytes are the golden ones."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedgpt2.config import PRESETS
from fedgpt2.identity.keys import verify
from fedgpt2.types import ModelShape

from .numerics import cosine, exact, random_weights

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "src" / "fedgpt2" / "data" / "assets"
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def miner() -> ModuleType:
    """examples/numpy_miner.py."""
    spec = importlib.util.spec_from_file_location("numpy_miner", ROOT / "examples" / "numpy_miner.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("shape", [TINY, replace(TINY, n_layer=12, n_head=4)])
def test_gradient_of_the_numpy_miner_is_the_exact_gradient(miner: ModuleType, shape: ModelShape) -> None:
    weights = random_weights(shape, 7)
    windows = np.random.default_rng(3).integers(0, shape.vocab_size, (3, 50), dtype=np.int64)
    loss, gradient = exact(weights, shape, windows)
    theirs = miner.GPT2({name: view.numpy() for name, view in weights.views.items()}, shape.n_head, shape.n_layer)
    their_loss = theirs.gradient(windows, lambda: None)
    assert their_loss == pytest.approx(loss, rel=1e-5)
    for name, view in gradient.views.items():
        assert cosine(view.numpy(), theirs.g[name]) > 0.99999, name
        np.testing.assert_allclose(theirs.g[name], view.numpy(), rtol=2e-3, atol=2e-6, err_msg=name)


def test_numpy_miner_writes_and_opens_the_golden_messages(miner: ModuleType, tmp_path: Path) -> None:
    vectors = golden("protocol.json")
    key = miner.Miner(0, bytes.fromhex(vectors["keys"]["seed"]), None, tmp_path / "journal.json")
    key.server_close()
    assert key.address == vectors["keys"]["signer"]
    for kind, payload in vectors["messages"].items():
        if kind in vectors["signatures"]:
            assert miner.canonical(json.loads(payload)) == payload
            signed = bytes.fromhex(vectors["signed_bytes"][kind])
            miner.verify(key.address, signed, vectors["signatures"][kind])
            assert verify(key.address, signed, bytes.fromhex(key.seal(kind, json.loads(payload))["signature"]))
    messages = {kind: json.loads(vectors["messages"][kind]) for kind in ("order", "receipt")}
    for kind, message in messages.items():
        to_itself = message | {"sender": key.address, "receiver": key.address}
        assert key.open(key.seal(kind, to_itself), kind, key.address) == to_itself
        envelope = {"kind": kind, "payload": vectors["messages"][kind], "signer": key.address}
        with pytest.raises(miner.Refusal, match="somebody else"):
            key.open(envelope | {"signature": vectors["signatures"][kind]}, kind, key.address)
    odd = messages["order"] | {"sender": key.address, "receiver": key.address, "bonus": 1}
    with pytest.raises(miner.Refusal, match="unknown fields"):
        key.take(key.address, key.seal("order", odd))


def test_numpy_miner_computes_the_golden_addresses_tokens_and_digests(miner: ModuleType) -> None:
    vectors = golden("miner.json")
    for public, address in vectors["addresses"].items():
        assert miner.to_address(bytes.fromhex(public)) == address
    text = miner.Text(ASSETS)
    for words, tokens in vectors["tokens"]:
        assert text.encode(words) == tokens
    tensors = golden("protocol.json")["tensors"]
    flat, views = np.frombuffer(bytes.fromhex(tensors["weights"]), "<f4"), {}
    for name, shape in tensors["schema"].items():
        views[name], flat = flat[: np.prod(shape)].reshape(shape), flat[np.prod(shape) :]
    body = miner.write_body(views)
    assert body.startswith(bytes.fromhex(tensors["header.F32"]))
    read, digest = miner.read_body(body)
    assert digest == tensors["model_digest"]
    assert list(read) == list(views)
