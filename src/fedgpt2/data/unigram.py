"""The loss of knowing nothing but how often each token occurs: the line a model has to get under."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgpt2.data.manifest import Manifest
from fedgpt2.data.pages import Pool
from fedgpt2.data.permutation import Permutation
from fedgpt2.data.tokenizer import VOCAB_SIZE
from fedgpt2.data.tokens import Tokens

__all__ = ["FIT_TOKENS", "Unigram", "fit_unigram"]

FIT_TOKENS = 4_000_000  # counted at most, give or take a page; the embedded corpus has fewer


@dataclass(frozen=True)
class Unigram:
    """Add-one-smoothed token frequencies."""

    log_probabilities: NDArray[np.float64]  # [vocabulary]

    def loss(self, windows: Tokens) -> float:
        """Mean loss in nats a token on the targets of windows [n, t + 1] (all tokens but the first)."""
        return float(-self.log_probabilities[windows[:, 1:]].mean())


def fit_unigram(manifest: Manifest, loader: Callable[[int], Tokens]) -> Unigram:
    """Count the assign pool, page by page in a keyed order, until all or FIT_TOKENS are counted.

    `loader` gives the tokens of an assign page.
    """
    counts = np.ones(VOCAB_SIZE, dtype=np.int64)
    pages = manifest.pools[Pool.ASSIGN]
    order = Permutation(f"fedgpt2\n1\nunigram\n{manifest.digest()}".encode("ascii"), pages)
    for place in range(pages):
        counts += np.bincount(loader(order(place)), minlength=VOCAB_SIZE)
        if counts.sum() >= FIT_TOKENS + VOCAB_SIZE:
            break
    return Unigram(np.log(counts / counts.sum()))
