"""Reading ahead: in order, once, never in the way."""

import contextlib
import threading
import time
import zlib
from pathlib import Path

import numpy as np

from fedgpt2.data import Corpus
from fedgpt2.data.prefetch import Prefetcher
from fedgpt2.errors import CorpusError

from .refinedweb import repository
from .test_parquet_source import UNEVEN, config_of

KEY = bytes(32)


def test_jobs_run_in_order_the_urgent_ones_first():
    ran: list[int] = []
    gate, begun = threading.Event(), threading.Event()
    ahead = Prefetcher(workers=1)
    ahead.submit("gate", lambda: (begun.set(), gate.wait(10)))
    assert begun.wait(10)
    for number in range(3):
        ahead.submit(number, lambda n=number: ran.append(n), urgent=False)
        ahead.submit(number, lambda: ran.append(-1), urgent=False)  # waits already
    for number in range(10, 12):
        ahead.submit(number, lambda n=number: ran.append(n))
    assert not ahead.wait(0.05)
    gate.set()
    assert ahead.wait(10)
    assert ran == [10, 11, 0, 1, 2]


def test_a_failure_is_left_to_whoever_needs_the_page():
    ahead = Prefetcher()
    ran = []

    def fail() -> None:
        raise CorpusError("no network")

    for number in range(20):
        ahead.submit(number, fail)
    ahead.submit("last", lambda: ran.append(1))
    assert ahead.wait(10)
    ahead.submit("later", lambda: ran.append(2))  # the workers have ended; others begin
    assert ahead.wait(10)
    assert ran == [1, 2]


def test_closed_it_forgets_what_waits():
    ran: list[int] = []
    gate, begun = threading.Event(), threading.Event()
    ahead = Prefetcher(workers=1)
    ahead.submit("gate", lambda: (begun.set(), gate.wait(10)))
    assert begun.wait(10)
    ahead.submit(1, lambda: ran.append(1))
    start = time.monotonic()
    ahead.close(0.05)
    assert time.monotonic() - start < 5
    ahead.submit(2, lambda: ran.append(2))
    gate.set()
    assert ahead.wait(10)
    assert ran == []


def test_the_next_round_finds_its_pages_here(serve, tmp_path: Path):
    hub = serve(repository(UNEVEN))
    corpus = Corpus.open(config_of(tmp_path, span=2), seq_len=16, seed=2)
    corpus.load(1, [0, 1], 4)
    assert corpus.wait(30)
    requests = len(hub.requests)
    shares = [corpus.assign(1, slot, 4) for slot in (0, 1)]
    assert len(hub.requests) == requests
    corpus.load_ahead(1, [0, 1], 4)  # round 2 begins another span
    assert corpus.wait(30)
    assert len(hub.requests) > requests
    requests = len(hub.requests)
    later = [corpus.assign(2, slot, 4) for slot in (0, 1)]
    assert len(hub.requests) == requests
    assert not {p for share in shares for p in share.pages} & {p for share in later for p in share.pages}
    corpus.close()
    corpus.load_ahead(3, [0, 1], 4)
    assert len(hub.requests) == requests


def test_closed_it_waits_for_no_page_that_others_fetch(serve, tmp_path: Path):
    serve(repository(UNEVEN))
    corpus = Corpus.open(config_of(tmp_path), seq_len=16, seed=2)
    store, kind = corpus.cache.store, corpus.cache.kind
    assert store is not None
    with contextlib.ExitStack() as held:
        for name in {zlib.crc32(f"{kind}/{page}".encode()) % 64: page for page in page_names(corpus)}.values():
            held.enter_context(store.turn("pages", f"{kind}/{name}"))
        corpus.load(1, [0, 1], 4)
        corpus.load_held_out()
        assert not corpus.wait(0.2)
        corpus.close()
        assert corpus.wait(0)
    assert not store.names(kind)


def page_names(corpus: Corpus) -> list[str]:
    """What the cache calls all pages."""
    return [f"{pool}-{page:08d}.u16" for pool, pages in corpus.manifest.pools.items() for page in range(pages)]


def test_held_out_pages_wait_for_nobody(serve, tmp_path: Path):
    hub = serve(repository(UNEVEN))
    corpus = Corpus.open(config_of(tmp_path), seq_len=16, seed=2)
    corpus.load_held_out()
    assert corpus.wait(30)
    requests = len(hub.requests)
    assert corpus.score(KEY, 3, [], 4).shape == (4, 17)
    assert len(hub.requests) == requests


def test_the_embedded_corpus_is_not_read_ahead(corpus: Corpus):
    corpus.load(1, range(16), 8)
    corpus.load_ahead(1, range(16), 8)
    corpus.load_held_out()
    assert corpus.wait(0)
    assert np.array_equal(corpus.score(KEY, 3, [], 4), corpus.score(KEY, 3, [], 4))


def test_a_page_on_its_way_is_not_fetched_again(serve, tmp_path: Path):
    hub = serve(repository(UNEVEN))
    corpus = Corpus.open(config_of(tmp_path), seq_len=16, seed=2)
    before = len(hub.requests)
    hub.bytes_per_second = 20_000
    corpus.load(5, [0, 1], 4)
    share = corpus.assign(5, 0, 4)  # meets the prefetch in the middle
    assert corpus.wait(60)
    pages = {*share.pages, *corpus.assign(5, 1, 4).pages}
    assert len(hub.requests) - before == 2 * len(pages)
