"""The part of an order that takes time: reading text and computing. Blocking; runs in a worker thread."""

import math
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedgpt2.data.assignment import Assignment, gather_windows, verify
from fedgpt2.data.corpus import Corpus
from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import PageSource, Pool
from fedgpt2.data.store import Store
from fedgpt2.data.tokens import Tokens
from fedgpt2.errors import CorpusError, Reason, Refused
from fedgpt2.gradient.strategy import Strategy
from fedgpt2.miner.orders import Plan, check_windows
from fedgpt2.miner.packer import ComputeResult
from fedgpt2.model.gpt2 import GPT2
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.digests import model_digest
from fedgpt2.types import Digest

__all__ = ["MinerCorpus", "Trainer"]

Windows = NDArray[np.uint16]


class MinerCorpus:
    """The miner's own text, as the manifest of the latest order deals it out."""

    def __init__(self, source: PageSource, store: Store | None = None) -> None:
        self._source = source
        self._store = store
        self._corpus: Corpus | None = None
        self._lock = threading.Lock()

    def windows(self, plan: Plan, manifest: bytes, stop: threading.Event) -> Windows:
        """The windows an order is about, [n, seq_len + 1], once everything said about them is verified.

        `manifest` holds the bytes that the order's digest names; `stop` is looked at before each page, and while others
        fetch it. Raises Refused: wrong_manifest, wrong_assignment, cancelled, or data_unavailable when the text cannot
        be read.
        """
        assignment = _assignment(plan)
        corpus = self._opened(assignment.manifest, manifest)
        check_windows(plan.order, corpus.manifest.seq_len)

        def page(number: int) -> Tokens:
            if stop.is_set():
                raise Refused(Reason.CANCELLED, "the order was called off")
            return corpus.tokens(Pool.ASSIGN, number, stop)

        try:
            verify(corpus.manifest, assignment, plan.order.round, page)
            windows = gather_windows(page, assignment, corpus.manifest.seq_len)
        except CorpusError as error:
            raise Refused(Reason.DATA_UNAVAILABLE, str(error)) from error
        corpus.load_ahead(plan.order.round, [assignment.slot], assignment.n_windows)
        return windows

    def close(self) -> None:
        """Read nothing more ahead; called before the program ends."""
        with self._lock:
            if self._corpus is not None:
                self._corpus.close()

    def _opened(self, digest: Digest, manifest: bytes) -> Corpus:
        with self._lock:
            if self._corpus is None or self._corpus.manifest.digest() != digest:
                corpus = self._read(manifest)  # first: one that is refused leaves the text in hand as it is
                if self._corpus is not None:
                    self._corpus.close()
                self._corpus = corpus
            return self._corpus

    def _read(self, manifest: bytes) -> Corpus:
        try:
            return Corpus(self._source, Manifest.from_bytes(manifest), self._store)
        except CorpusError as error:
            raise Refused(Reason.WRONG_MANIFEST, str(error)) from error


@dataclass(frozen=True)
class Trainer:
    """How this miner computes."""

    device: torch.device
    strategy: Strategy

    def compute(
        self, plan: Plan, weights: FlatState, windows: Windows, gradient: FlatState, stop: threading.Event
    ) -> ComputeResult:
        """Fill `gradient` with the mean gradient over `windows` at `weights`.

        Raises Refused: wrong_state when the weights are not the order's parent, cancelled soon after `stop` is set,
        compute_failed.
        """
        start = time.monotonic()
        self._check_parent(plan, weights)
        try:
            model = GPT2(plan.order.model, weights.to(self.device))
            result = self.strategy(model, windows, out=gradient, stop=stop)
        except (MemoryError, RuntimeError) as error:  # torch's own word for a device that is out of memory
            detail = (str(error).splitlines() or [""])[0][:300]
            raise Refused(Reason.COMPUTE_FAILED, f"{type(error).__name__}: {detail}") from error
        if not math.isfinite(result.loss):
            raise Refused(Reason.COMPUTE_FAILED, f"the loss is {result.loss}")
        return ComputeResult(result.loss, result.tokens, time.monotonic() - start)

    def _check_parent(self, plan: Plan, weights: FlatState) -> None:
        digest = model_digest(plan.schema, weights.memory(), threads=torch.get_num_threads())
        if digest != plan.order.parent:
            raise Refused(
                Reason.WRONG_STATE, f"the state is model {digest[:16]}…, the order's parent {plan.order.parent[:16]}…"
            )


def _assignment(plan: Plan) -> Assignment:
    stated = plan.order.assignment
    return Assignment(Digest(stated.manifest), stated.slot, stated.pages, stated.windows)
