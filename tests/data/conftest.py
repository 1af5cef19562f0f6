"""A corpus of any shape without any text: pages whose windows are counted, not written."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from fedgpt2.config import Data
from fedgpt2.data import Corpus, Manifest, Pool, SourceFile, open_source
from fedgpt2.data.sample import SampleSource
from fedgpt2.data.tokenizer import VOCAB_SHA256

from .hub import LoopbackHub


def manifest_of(**changes) -> Manifest:
    fields = {
        "source": "text",
        "files": (SourceFile("a.txt", 5, "0" * 64), SourceFile("b/ü\n.txt", 7, "f" * 64)),
        "tokenizer": VOCAB_SHA256,
        "seq_len": 4,
        "seed": 1337,
        "max_slots": 5,
        "max_pages": 3,
        "span": 4,
        "page_documents": 8,
        "pools": {Pool.ASSIGN: 50, Pool.SCORE: 7, Pool.REPORT: 6},
    }
    return Manifest(**fields | changes)


def page_of(windows: int, seq_len: int = 4) -> np.ndarray:
    """Tokens of a page with so many windows and a tail."""
    return np.arange(windows * seq_len + min(seq_len, 3), dtype=np.uint16)


def uneven(page: int) -> np.ndarray:
    """Pages of 0 to 12 windows at sequence length 4."""
    return page_of((page * 7 + 3) % 13)


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    return manifest_of


@pytest.fixture(scope="session")
def make_page() -> Callable[..., np.ndarray]:
    return page_of


@pytest.fixture(scope="session")
def uneven_pages() -> Callable[[int], np.ndarray]:
    return uneven


@pytest.fixture(scope="session")
def sample() -> SampleSource:
    source = open_source(Data(source="sample"))
    assert isinstance(source, SampleSource)
    return source


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus.open(Data(source="sample"), seq_len=128, seed=1337)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[LoopbackHub], LoopbackHub]]:
    """Serve a loopback hub as the hub of this test, with a home of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a power cut does is not these tests' affair
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:

        def start(hub: LoopbackHub) -> LoopbackHub:
            stack.enter_context(hub.serve())
            monkeypatch.setattr(constants, "ENDPOINT", hub.url)
            return hub

        yield start
