"""A small vocabulary, so that a training of `nano` takes minutes on one core."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedgpt2.data.corpus import Corpus
from fedgpt2.data.pages import Pool
from fedgpt2.data.tokenizer import VOCAB_SIZE
from fedgpt2.data.tokens import Tokens

__all__ = ["Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by frequency rank; the last rank stands for all rarer tokens."""

    ranks: NDArray[np.uint16]  # [VOCAB_SIZE]

    @classmethod
    def fit(cls, corpus: Corpus, size: int) -> "Vocabulary":
        """The `size` - 1 most frequent tokens of the assign pool; the identity if `size` is GPT-2's own."""
        if size == VOCAB_SIZE:
            return cls(np.arange(VOCAB_SIZE, dtype=np.uint16))
        counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
        for page in range(corpus.manifest.pools[Pool.ASSIGN]):
            counts += np.bincount(corpus.tokens(Pool.ASSIGN, page), minlength=VOCAB_SIZE)
        ranks = np.full(VOCAB_SIZE, size - 1, dtype=np.uint16)
        ranks[np.argsort(-counts, kind="stable")[: size - 1]] = np.arange(size - 1)
        return cls(ranks)

    def __call__(self, windows: Tokens) -> Tokens:
        """Map windows to this vocabulary."""
        return self.ranks[windows]
