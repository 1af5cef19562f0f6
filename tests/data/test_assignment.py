"""The assignment scheme: disjoint, stateless, tiling, verifiable."""

import dataclasses
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgpt2.data import Assignment, Manifest, Pool
from fedgpt2.data.assignment import assign, assigned_page, gather_windows, slice_windows, verify
from fedgpt2.data.permutation import Permutation
from fedgpt2.errors import CorpusError, Reason, Refused, UsageError


@st.composite
def manifests(draw: st.DrawFn, make_manifest) -> Manifest:
    slots, pages = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    assign_pages = slots * pages + draw(st.integers(0, 60))
    pools = {Pool.ASSIGN: assign_pages, Pool.SCORE: 3, Pool.REPORT: 3}
    return make_manifest(
        max_slots=slots,
        max_pages=pages,
        span=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**63 - 1)),
        pools=pools,
    )


def test_golden(make_manifest, golden, uneven_pages):
    manifest = make_manifest()
    orders = []
    for round, slot, n in [(0, 0, 4), (0, 4, 4), (1, 0, 1), (3, 2, 100), (4, 2, 100), (11, 1, 3), (100, 3, 6)]:
        given = assign(manifest, uneven_pages, round, slot, n)
        orders.append(
            {
                "round": round,
                "slot": slot,
                "asked": n,
                "pages": list(given.pages),
                "windows": [list(chosen) for chosen in given.windows],
            }
        )
    permutations = [
        {"label": label, "size": size, "images": [Permutation(label.encode(), size)(i) for i in range(size)][:20]}
        for label, size in [("", 1), ("a", 2), ("a", 10), ("fedgpt2\n1", 1000)]
    ]
    counts = [(len(uneven_pages(page)) - 1) // 4 for page in range(50)]
    golden(
        "assignment.json",
        {
            "permutations": permutations,
            "manifest": manifest.to_bytes().decode(),
            "windows_of_page": counts,
            "assignments": orders,
        },
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_page_is_given_twice_in_an_epoch(make_manifest, data: st.DataObject):
    manifest = data.draw(manifests(make_manifest))
    rounds_per_epoch = manifest.epoch_spans * manifest.span
    first = data.draw(st.integers(0, 50)) * rounds_per_epoch
    spans = range(first, first + rounds_per_epoch, manifest.span)
    places = product(spans, range(manifest.max_slots), range(manifest.max_pages))
    pages = [assigned_page(manifest, round, slot, j) for round, slot, j in places]
    assert len(set(pages)) == len(pages) == manifest.epoch_spans * manifest.span_pages
    assert max(pages) < manifest.pools[Pool.ASSIGN]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_windows_of_a_round_are_disjoint_and_recomputable(make_manifest, uneven_pages, data: st.DataObject):
    manifest = data.draw(manifests(make_manifest))
    round = data.draw(st.integers(0, 10**9))
    used: Counter[tuple[int, int]] = Counter()
    for slot in range(manifest.max_slots):
        try:
            given = assign(manifest, uneven_pages, round, slot, data.draw(st.integers(1, 40)))
        except CorpusError:
            continue  # pages without windows are among them
        verify(manifest, given, round, uneven_pages)
        used.update((p, w) for p, chosen in zip(given.pages, given.windows, strict=True) for w in chosen)
    assert set(used.values()) <= {1}


@given(data=st.data(), count=st.integers(0, 40))
def test_a_span_uses_each_window_of_a_page_once(make_manifest, data: st.DataObject, count: int):
    manifest = data.draw(manifests(make_manifest))
    first = data.draw(st.integers(0, 100)) * manifest.span
    j = data.draw(st.integers(0, manifest.max_pages - 1))
    parts = [slice_windows(manifest, first + i, j, 7, count) for i in range(manifest.span)]
    assert sorted(window for part in parts for window in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_pages_stay_for_a_span_and_move_after(make_manifest):
    manifest = make_manifest()
    pages = [assigned_page(manifest, round, 2, 1) for round in range(8)]
    assert len(set(pages[:4])) == len(set(pages[4:])) == 1
    assert pages[0] != pages[4]


def test_the_next_epoch_deals_anew(make_manifest):
    manifest = make_manifest()
    rounds = manifest.epoch_spans * manifest.span
    first = [assigned_page(manifest, r, 0, j) for r in range(rounds) for j in range(3)]
    second = [assigned_page(manifest, r + rounds, 0, j) for r in range(rounds) for j in range(3)]
    assert first != second
    order = [slice_windows(manifest, r, 0, 7, 20) for r in (0, rounds)]
    assert order[0] != order[1]


def test_who_joins_or_leaves_moves_nobody(make_manifest, uneven_pages):
    manifest = make_manifest()
    alone = assign(manifest, uneven_pages, 5, 3, 6)
    for slot in (0, 1, 2, 4):
        assign(manifest, uneven_pages, 5, slot, 6)
    assert assign(manifest, uneven_pages, 5, 3, 6) == alone


def test_less_work_is_the_beginning_of_more(make_manifest, make_page):
    manifest = make_manifest()
    pages = [assign(manifest, lambda _: make_page(12), 5, 3, n) for n in range(1, 10)]
    flat = [[(p, w) for p, ws in zip(a.pages, a.windows, strict=True) for w in ws] for a in pages]
    assert [len(part) for part in flat] == list(range(1, 10))
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(flat))
    assert assign(manifest, lambda _: make_page(12), 5, 3, 1000).n_windows == 9  # 3 pages x 12 / 4


def test_pages_with_fewer_windows_than_the_span_serve_every_round(make_manifest, make_page):
    manifest = make_manifest(max_pages=4, pools={Pool.ASSIGN: 50, Pool.SCORE: 3, Pool.REPORT: 3})
    sizes = [assign(manifest, lambda _: make_page(3), round, 0, 100).n_windows for round in range(8)]
    assert sizes == [3] * 8


def test_pages_at_the_end_that_add_nothing_are_left_out(make_manifest, make_page):
    manifest = make_manifest()
    page = assigned_page(manifest, 0, 0, 0)
    given = assign(manifest, lambda p: make_page(8 if p == page else 0), 0, 0, 5)
    assert (given.pages, given.n_windows) == ((page,), 2)


def test_an_empty_share_names_the_settings(make_manifest, make_page):
    with pytest.raises(CorpusError, match=r"--data.span"):
        assign(make_manifest(), lambda _: make_page(0), 0, 0, 5)


@pytest.mark.parametrize("slot", [-1, 5])
def test_a_slot_that_is_not_there(make_manifest, uneven_pages, slot: int):
    with pytest.raises(UsageError, match=r"--data.max_slots is 5"):
        assign(make_manifest(), uneven_pages, 0, slot, 5)


@pytest.mark.parametrize(
    ("changes", "round", "reason"),
    [
        ({"manifest": "0" * 64}, 5, Reason.WRONG_MANIFEST),
        ({}, 4, Reason.WRONG_ASSIGNMENT),  # same span, another part
        ({}, 8, Reason.WRONG_ASSIGNMENT),
        ({}, -1, Reason.WRONG_ASSIGNMENT),
        ({"slot": 2}, 5, Reason.WRONG_ASSIGNMENT),
        ({"slot": 5}, 5, Reason.WRONG_ASSIGNMENT),
        ({"slot": -1}, 5, Reason.WRONG_ASSIGNMENT),
        ({"pages": (), "windows": ()}, 5, Reason.WRONG_ASSIGNMENT),
        ({"pages": (1,)}, 5, Reason.WRONG_ASSIGNMENT),
        ({"pages": (1, 2, 3, 4)}, 5, Reason.WRONG_ASSIGNMENT),
        ({"windows": ((0, 1, 2), (3, 4, 4))}, 5, Reason.WRONG_ASSIGNMENT),
        ({"windows": ((0, 1, 2), ())}, 5, Reason.WRONG_ASSIGNMENT),
        ({"windows": ((0, 1, 2), (3, 4))}, 5, Reason.WRONG_ASSIGNMENT),
        ({"windows": ((0, 1, 2), (3, 99))}, 5, Reason.WRONG_ASSIGNMENT),
    ],
)
def test_verification_refuses_any_other_order(make_manifest, make_page, changes, round: int, reason: Reason):
    manifest = make_manifest()

    def pages(_: int) -> np.ndarray:
        return make_page(12)

    right = assign(manifest, pages, 5, 3, 5)
    verify(manifest, right, 5, pages)
    with pytest.raises(Refused) as caught:
        verify(manifest, dataclasses.replace(right, **changes), round, pages)
    assert caught.value.reason is reason


@pytest.mark.parametrize("tokens", [1, 2])
def test_verification_reads_no_page_that_is_not_named(make_manifest, make_page, tokens):
    """Else one order of one window would have a miner read its whole text, where pages hold next to none."""
    manifest, read = make_manifest(), []

    def pages(page: int) -> np.ndarray:
        read.append(page)
        return make_page(tokens)

    named = Assignment(manifest.digest(), 3, (assigned_page(manifest, 5, 3, 0),), ((0,),))
    with pytest.raises(Refused) as caught:
        verify(manifest, named, 5, pages)
    assert caught.value.reason is Reason.WRONG_ASSIGNMENT
    assert read == list(named.pages)


def test_verification_of_pages_needs_no_text(make_manifest, make_page):
    manifest = make_manifest()
    right = assign(manifest, lambda _: make_page(12), 5, 3, 5)
    verify(manifest, right, 5)
    with pytest.raises(Refused, match="not the slot's page 0"):
        verify(manifest, right, 8)


def test_gathered_windows_are_the_named_ones(make_manifest):
    tokens = {2: np.arange(100, 123, dtype=np.uint16), 5: np.arange(200, 209, dtype=np.uint16)}
    given = Assignment(make_manifest().digest(), 0, (2, 5), ((4, 0), (1,)))
    rows = gather_windows(tokens.__getitem__, given, 4)
    assert rows.dtype == np.uint16
    assert rows[:, 0].tolist() == [116, 100, 204]
    assert rows.tolist() == [list(range(start, start + 5)) for start in (116, 100, 204)]


@pytest.mark.parametrize("window", [5, -1])
def test_a_window_the_page_does_not_have(make_manifest, window: int):
    given = Assignment(make_manifest().digest(), 0, (2,), ((window,),))
    with pytest.raises(Refused, match="5 windows") as caught:
        gather_windows(lambda _: np.arange(23, dtype=np.uint16), given, 4)
    assert caught.value.reason is Reason.WRONG_ASSIGNMENT
