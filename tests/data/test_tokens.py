"""Pages as tokens, windows, and the cache of pages."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import blake3
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.data import Pool, SourceFile
from fedgpt2.data.document_splitting import document_spans
from fedgpt2.data.manifest import SCHEME
from fedgpt2.data.tokenizer import EOT, encode
from fedgpt2.data.tokens import TokenCache, pack, page_windows, window_count


class CountingSource:
    """Pages of one document, and how often each was read."""

    name = "counting"
    page_documents = 1
    pools = dict.fromkeys(Pool, 100)

    def __init__(self) -> None:
        self.reads: Counter[int] = Counter()

    def files(self) -> list[SourceFile]:
        return []

    def documents(self, pool: Pool, page: int) -> list[str]:
        self.reads[page] += 1
        return [f"{pool} page {page} " + "word " * 100]


def test_a_document_is_marked_and_packed():
    tokens = pack(["One.", "Two <|endoftext|> three", ""])
    assert tokens.dtype == np.uint16
    parts = [[EOT], encode("One."), [EOT], encode("Two <|endoftext|> three"), [EOT]]
    assert tokens.tolist() == [int(token) for part in parts for token in part]
    assert np.count_nonzero(tokens == EOT) == 3
    assert pack([]).shape == (0,)


def test_how_text_is_cut_and_tokenised_is_this_scheme():
    """Other tokens of the same text are another scheme: without another number caches give the old ones."""
    english = "We saw Mr. Smith, it's 1,200 m away. " * 40 + "\r\n \n" + "word " * 900
    raw = (english + "é" * 3000 + "吾輩は猫である。" * 300).encode()
    documents = [raw[start:end].decode() for start, end in document_spans(raw)]
    digest = blake3.blake3(pack(documents).astype("<u2").tobytes()).hexdigest()
    assert (SCHEME, len(documents), digest[:16]) == (1, 8, "503e974451c5fd84")


@given(length=st.integers(0, 60), seq_len=st.integers(1, 20))
def test_windows_overlap_by_one_token_and_drop_the_tail(length: int, seq_len: int):
    tokens = np.arange(length, dtype=np.uint16)
    windows = page_windows(tokens, seq_len)
    count = window_count(tokens, seq_len)
    assert windows.shape == (count, seq_len + 1)
    for i, window in enumerate(windows):
        assert window.tolist() == list(range(i * seq_len, (i + 1) * seq_len + 1))
    assert count * seq_len + 1 > length - seq_len


def test_windows_are_a_view_nobody_can_write():
    tokens = np.arange(50, dtype=np.uint16)
    windows = page_windows(tokens, 4)
    assert np.shares_memory(windows, tokens)
    with pytest.raises(ValueError, match="read-only"):
        windows[0, 0] = 1


def test_a_page_is_tokenised_once():
    source = CountingSource()
    cache = TokenCache(source)
    first = cache.get(Pool.ASSIGN, 3)
    assert cache.get(Pool.ASSIGN, 3) is first
    assert cache.get(Pool.SCORE, 3) is not first
    assert source.reads == {3: 2}
    assert not first.flags.writeable


def test_the_least_recently_used_page_goes_first():
    source = CountingSource()
    size = TokenCache(source).get(Pool.ASSIGN, 0).nbytes
    cache = TokenCache(source, capacity=2 * size + 20)
    for page in (1, 2, 1, 3, 1, 2):
        cache.get(Pool.ASSIGN, page)
    assert [source.reads[page] for page in (1, 2, 3)] == [1, 2, 1]


def test_a_page_beyond_the_capacity_is_still_served():
    cache = TokenCache(CountingSource(), capacity=1)
    assert len(cache.get(Pool.ASSIGN, 1)) == len(cache.get(Pool.ASSIGN, 2)) > 100


def test_threads_get_the_same_tokens():
    source = CountingSource()
    cache = TokenCache(source, capacity=2000)
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda i: cache.get(Pool.ASSIGN, i % 10).tobytes(), range(400)))
    assert all(tokens == pages[i % 10] for i, tokens in enumerate(pages))
