"""Row groups dealt out: vectors, no page and no window twice, in time."""

import random
import sys
import time
from collections.abc import Iterator

import pytest

from fedgpt2.data import Manifest, Pool
from fedgpt2.data.assignment import assign, assigned_page, page_of, slice_windows, verify

from .test_permutation import by_the_book

FILES, GROUPS = 5534, 175  # RefinedWeb: 968,000,015 rows in 1,000s


@pytest.fixture(scope="module")
def refinedweb(make_manifest) -> Manifest:
    """A manifest of RefinedWeb's size with the default settings."""
    pools = {Pool.ASSIGN: (FILES - 2) * GROUPS, Pool.SCORE: GROUPS, Pool.REPORT: GROUPS}
    return make_manifest(page_documents=0, max_slots=16, max_pages=8, seq_len=1024, span=439, pools=pools)


@pytest.fixture(scope="module")
def small(make_manifest) -> Manifest:
    pools = {Pool.ASSIGN: 50, Pool.SCORE: 7, Pool.REPORT: 6}
    return make_manifest(page_documents=0, pools=pools)


def test_golden(small: Manifest, refinedweb: Manifest, golden, uneven_pages):
    orders = []
    for round, slot, n in [(0, 0, 4), (0, 4, 4), (1, 0, 1), (3, 2, 100), (4, 2, 100), (11, 1, 3), (100, 3, 6)]:
        given = assign(small, uneven_pages, round, slot, n)
        orders.append(
            {
                "round": round,
                "slot": slot,
                "asked": n,
                "pages": list(given.pages),
                "windows": [list(chosen) for chosen in given.windows],
            }
        )
    draw = random.Random(1)  # noqa: S311
    triples = [(draw.randrange(10**7), draw.randrange(16), draw.randrange(8)) for _ in range(20)]
    golden(
        "row_groups.json",
        {
            "manifest": small.to_bytes().decode(),
            "windows_of_page": [(len(uneven_pages(page)) - 1) // 4 for page in range(50)],
            "assignments": orders,
            "refinedweb": {
                "manifest": refinedweb.to_bytes().decode(),
                "pages": [[*triple, assigned_page(refinedweb, *triple)] for triple in triples],
            },
        },
    )


def test_as_documented(small: Manifest):
    """Pages, step by step as docs/data.md states them."""
    z, m, spans = 1337, small.digest(), 50 // 15

    def page(epoch: int, counter: int) -> int:
        label = f"fedgpt2\n1\npages\n{z}\n{m}\nassign\n{epoch}".encode()
        return by_the_book(label, 50 // 3, counter // 3) * 3 + counter % 3

    for round, slot, j in [(0, 0, 0), (3, 4, 2), (4, 1, 1), (13, 2, 0), (100, 3, 2)]:
        s = round // 4
        assert assigned_page(small, round, slot, j) == page(s // spans, ((s % spans) * 5 + slot) * 3 + j)


def test_ten_thousand_triples_share_nothing(refinedweb: Manifest):
    """Different (span, slot, j) of one epoch: different pages; rounds of one span: the page, but other windows."""
    draw = random.Random(2)  # noqa: S311
    rounds = refinedweb.epoch_spans * refinedweb.span
    triples = {(draw.randrange(rounds), draw.randrange(16), draw.randrange(8)) for _ in range(10_000)}
    pages: dict[int, tuple[int, int, int]] = {}
    windows: set[tuple[int, int]] = set()
    total = 0
    for round, slot, j in triples:
        page = assigned_page(refinedweb, round, slot, j)
        assert pages.setdefault(page, (round // 439, slot, j)) == (round // 439, slot, j)
        chosen = slice_windows(refinedweb, round, j, page, 586)
        total += len(chosen)
        windows.update((page, window) for window in chosen)
    assert len(windows) == total > 10_000
    assert max(pages) < refinedweb.pools[Pool.ASSIGN]


def test_no_page_is_given_twice_in_an_epoch_of_runs(small: Manifest):
    spans = range(0, small.epoch_spans * small.span, small.span)
    pages = [assigned_page(small, r, slot, j) for r in spans for slot in range(5) for j in range(3)]
    assert len(set(pages)) == len(pages) == small.epoch_spans * 15


def test_another_epoch_moves_the_runs_not_their_insides(small: Manifest):
    first, second = ([page_of(small, epoch, counter) for counter in range(48)] for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(48))  # two of 50 pages make no run of three
    for pages in (first, second):
        assert all(pages[at : at + 3] == list(range(pages[at], pages[at] + 3)) for at in range(0, 48, 3))


def test_recomputed_by_the_receiver(small: Manifest, uneven_pages):
    for round in range(12):
        verify(small, assign(small, uneven_pages, round, round % 5, 7), round, uneven_pages)


@pytest.fixture
def untraced() -> Iterator[None]:
    """No coverage while something is timed: its tracer costs more than an assignment does."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.mark.usefixtures("untraced")
def test_a_hundred_thousand_assignments_a_second(refinedweb: Manifest):
    def rate() -> float:
        start = time.process_time()
        for number in range(5000):
            assigned_page(refinedweb, number * 17, number % 16, number % 8)
        return 5000 / (time.process_time() - start)

    assert max(rate() for _ in range(20)) >= 100_000
