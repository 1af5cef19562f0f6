"""Corpus: the embedded text from settings to training windows."""

import math
from functools import partial

import numpy as np
import pytest

from fedgpt2.config import Data
from fedgpt2.data import Corpus, Pool
from fedgpt2.data.assignment import verify
from fedgpt2.data.tokenizer import EOT, VOCAB_SIZE
from fedgpt2.data.tokens import page_windows
from fedgpt2.data.unigram import Unigram, fit_unigram
from fedgpt2.errors import Reason, Refused
from fedgpt2.types import Digest

KEY = bytes(32)
ADMITTED = [Digest("ab" * 32), Digest("cd" * 32)]


def test_an_order_is_recomputed_by_another_process(corpus: Corpus):
    other = Corpus.open(Data(source="sample"), seq_len=128, seed=1337)
    given = corpus.assign(round=7, slot=3, n=8)
    verify(other.manifest, given, 7, partial(other.tokens, Pool.ASSIGN))
    windows = other.windows(given)
    assert windows.shape == (8, 129)
    assert windows.dtype == np.uint16
    assert np.array_equal(windows, corpus.windows(given))


def test_every_slot_is_served_in_every_round(corpus: Corpus):
    for round in range(0, 24):
        assert all(corpus.assign(round, slot, 8).n_windows == 8 for slot in range(16))


def test_full_length_windows_serve_every_slot():
    small = Corpus.open(Data(source="sample"), seq_len=1024, seed=1)
    sizes = [small.assign(round, slot, 8).n_windows for round in range(4) for slot in range(16)]
    assert min(sizes) >= 5


def test_the_setting_of_the_window_wins_over_the_models():
    corpus = Corpus.open(Data(source="sample", seq_len=32), seq_len=128, seed=1)
    assert corpus.windows(corpus.assign(0, 0, 2)).shape == (2, 33)


def test_another_seed_deals_otherwise(corpus: Corpus):
    other = Corpus.open(Data(source="sample"), seq_len=128, seed=1338)
    given = other.assign(0, 0, 8)
    with pytest.raises(Refused) as caught:
        verify(corpus.manifest, given, 0)
    assert caught.value.reason is Reason.WRONG_MANIFEST
    assert given.pages != corpus.assign(0, 0, 8).pages


def test_pools_do_not_share_a_window(corpus: Corpus):
    def rows(pool: Pool) -> set[bytes]:
        pages = range(corpus.manifest.pools[pool])
        return {row.tobytes() for page in pages for row in page_windows(corpus.tokens(pool, page), 128)}

    found = [rows(pool) for pool in Pool]
    assert len(set.union(*found)) == sum(map(len, found))


def test_held_out_windows_are_those_of_the_picks(corpus: Corpus):
    picks = corpus.score_picks(KEY, 5, ADMITTED, 4)
    windows = corpus.score(KEY, 5, ADMITTED, 4)
    for pick, window in zip(picks, windows, strict=True):
        page = corpus.tokens(Pool.SCORE, pick.page)
        assert np.array_equal(page_windows(page, 128)[pick.window], window)
    assert corpus.report(KEY, 16).shape == (16, 129)
    assert np.array_equal(corpus.report(KEY, 4), corpus.report(KEY, 16)[:4])


def test_a_page_has_its_documents(corpus: Corpus, sample):
    tokens = corpus.tokens(Pool.ASSIGN, 11)
    assert tokens[0] == EOT
    assert np.count_nonzero(tokens == EOT) == 8


def test_the_unigram_loss_of_the_sample(corpus: Corpus):
    loss = corpus.unigram(corpus.report(KEY, 200))
    assert 6.6 < loss < 6.8
    assert corpus.unigram(corpus.report(KEY, 200)) == loss


def test_the_unigram_model_is_add_one_smoothed_counting(make_manifest):
    pools = {Pool.ASSIGN: 3, Pool.SCORE: 1, Pool.REPORT: 1}
    manifest = make_manifest(pools=pools, max_slots=1, max_pages=1)
    pages = [np.array(tokens, dtype=np.uint16) for tokens in ([5, 5, 7], [5], [EOT])]
    model = fit_unigram(manifest, pages.__getitem__)
    assert np.exp(model.log_probabilities).sum() == pytest.approx(1)
    windows = np.array([[9, 5], [9, 0]], dtype=np.uint16)  # the first token is no target
    total = 5 + VOCAB_SIZE
    assert model.loss(windows) == pytest.approx(-(math.log(4 / total) + math.log(1 / total)) / 2)


def test_counting_stops_where_a_corpus_is_large(make_manifest):
    read: list[int] = []

    def page(number: int) -> np.ndarray:
        read.append(number)
        return np.zeros(1_500_000, dtype=np.uint16)

    assert isinstance(fit_unigram(make_manifest(), page), Unigram)
    assert len(read) == len(set(read)) == 3
