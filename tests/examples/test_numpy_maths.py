"""The numpy example's gradient is the exact one, and its bytes are the golden ones."""

import importlib
import json
from collections.abc import Callable, Iterator
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
def examples() -> Iterator[Callable[[str], ModuleType]]:
    """Loads a module of examples/, whose folder a script has first on its path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def numpy_gpt2(examples: Callable[[str], ModuleType]) -> ModuleType:
    return examples("numpy_gpt2")


def golden(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("shape", [TINY, replace(TINY, n_layer=12, n_head=4)])
def test_gradient_of_the_numpy_miner_is_the_exact_gradient(numpy_gpt2: ModuleType, shape: ModelShape) -> None:
    weights = random_weights(shape, 7)
    windows = np.random.default_rng(3).integers(0, shape.vocab_size, (3, 50), dtype=np.int64)
    loss, gradient = exact(weights, shape, windows)
    theirs = numpy_gpt2.GPT2({name: view.numpy() for name, view in weights.views.items()}, shape.n_head, shape.n_layer)
    their_loss = theirs.gradient(windows, lambda: None)
    assert their_loss == pytest.approx(loss, rel=1e-5)
    for name, view in gradient.views.items():
        assert cosine(view.numpy(), theirs.g[name]) > 0.99999, name
        np.testing.assert_allclose(theirs.g[name], view.numpy(), rtol=2e-3, atol=2e-6, err_msg=name)


def test_numpy_miner_writes_and_opens_the_golden_messages(examples: Callable[[str], ModuleType]) -> None:
    module, vectors = examples("numpy_miner"), golden("protocol.json")
    key = module.Key(bytes.fromhex(vectors["keys"]["seed"]))
    assert key.address == vectors["keys"]["signer"]
    for kind, payload in vectors["messages"].items():
        if kind in vectors["signatures"]:
            assert module.canonical(json.loads(payload)).decode() == payload
            signed = bytes.fromhex(vectors["signed_bytes"][kind])
            module.Key.verify(key.address, signed, vectors["signatures"][kind])
            assert verify(key.address, signed, bytes.fromhex(key.seal(kind, json.loads(payload))["signature"]))
    for kind in ("order", "receipt"):
        envelope = {"kind": kind, "payload": vectors["messages"][kind], "signer": key.address}
        opened = module.Key.open(envelope | {"signature": vectors["signatures"][kind]}, kind, key.address)
        assert opened == json.loads(vectors["messages"][kind])


def test_numpy_miner_computes_the_golden_addresses_tokens_and_digests(examples: Callable[[str], ModuleType]) -> None:
    module, vectors = examples("numpy_miner"), golden("miner.json")
    for public, address in vectors["addresses"].items():
        assert module.Key.to_address(bytes.fromhex(public)) == address
    text = module.Text(ASSETS)
    for words, tokens in vectors["tokens"]:
        assert text._encode(words) == tokens
    tensors = golden("protocol.json")["tensors"]
    flat, views = np.frombuffer(bytes.fromhex(tensors["weights"]), "<f4"), {}
    for name, shape in tensors["schema"].items():
        views[name], flat = flat[: np.prod(shape)].reshape(shape), flat[np.prod(shape) :]
    assert module.model_digest(views) == tensors["model_digest"]
    body = module.write_body(views)
    assert body.startswith(bytes.fromhex(tensors["header.F32"]))
    assert module.model_digest(module.read_body(body)) == tensors["model_digest"]
