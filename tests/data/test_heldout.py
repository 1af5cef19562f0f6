"""Held-out windows: bound to the admitted set, secret without the key."""

import hashlib
import hmac
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.data import Pick, key_digest, new_key
from fedgpt2.data.pools import gather_picks, report_windows, score_windows
from fedgpt2.errors import CorpusError
from fedgpt2.types import Digest

KEY = bytes(range(32))
ADMITTED = [Digest(c * 64) for c in "3a1"]


@pytest.fixture(scope="module")
def pages(uneven_pages):
    """Pages of different sizes; page 2 has no windows."""
    return lambda page: uneven_pages(page + 18)


def by_the_book(seed: bytes, pool_pages: int, windows: Callable[[int], int], n: int) -> list[tuple[int, int]]:
    """The draw as docs/data.md states it."""
    found: list[tuple[int, int]] = []
    i = 0
    while len(found) < n:
        block = hmac.new(seed, i.to_bytes(8, "big"), hashlib.sha256).digest()
        page = int.from_bytes(block[:8], "big") % pool_pages
        if windows(page):
            pick = (page, int.from_bytes(block[8:16], "big") % windows(page))
            if pick not in found:
                found.append(pick)
        i += 1
    return found


def test_as_documented(make_manifest, pages):
    manifest = make_manifest()

    def windows(page: int) -> int:
        return (len(pages(page)) - 1) // 4

    message = (12).to_bytes(8, "big") + hashlib.sha256(("1" * 64 + "3" * 64 + "a" * 64).encode()).digest()
    seed = hmac.new(KEY, message, hashlib.sha256).digest()
    picks = score_windows(manifest, KEY, 12, ADMITTED, pages, 9)
    assert list(picks) == by_the_book(seed, 7, windows, 9)
    seed = hmac.new(KEY, b"report", hashlib.sha256).digest()
    assert list(report_windows(manifest, KEY, pages, 9)) == by_the_book(seed, 6, windows, 9)


def test_golden(make_manifest, pages, golden):
    manifest = make_manifest()
    golden(
        "heldout.json",
        {
            "key": KEY.hex(),
            "round": 12,
            "admitted": ADMITTED,
            "pages": {"score": 7, "report": 6},
            "windows_of_page": [(len(pages(page)) - 1) // 4 for page in range(7)],
            "score": [list(p) for p in score_windows(manifest, KEY, 12, ADMITTED, pages, 9)],
            "report": [list(p) for p in report_windows(manifest, KEY, pages, 9)],
        },
    )


@given(order=st.permutations(ADMITTED))
def test_the_order_of_arrival_does_not_matter(make_manifest, make_page, order: list[Digest]):
    def page(_: int) -> np.ndarray:
        return make_page(1000)

    manifest = make_manifest()
    expected = score_windows(manifest, KEY, 1, ADMITTED, page, 4)
    assert score_windows(manifest, KEY, 1, order, page, 4) == expected


def test_admitted_set_round_and_key_each_change_the_windows(make_manifest, make_page):
    def draw(key: bytes = KEY, round: int = 1, admitted: list[Digest] = ADMITTED) -> tuple[Pick, ...]:
        return score_windows(make_manifest(), key, round, admitted, lambda _: make_page(1000), 4)

    flipped = bytes([KEY[0] ^ 1]) + KEY[1:]
    others = [
        draw(admitted=ADMITTED[:2]),
        draw(admitted=[*ADMITTED, ADMITTED[0]]),
        draw(admitted=[]),
        draw(round=2),
        draw(key=flipped),
        draw(key=bytes.fromhex(key_digest(KEY))),  # what is public does not give them
        report_windows(make_manifest(), KEY, lambda _: make_page(1000), 4),
    ]
    assert len({draw(), *others}) == len(others) + 1
    assert draw() == draw()


def test_windows_are_different_and_can_be_all_of_the_pool(make_manifest, make_page):
    picks = report_windows(make_manifest(), KEY, lambda _: make_page(2), 12)
    assert sorted(picks) == [(page, window) for page in range(6) for window in range(2)]


def test_a_pool_with_too_few_windows(make_manifest, make_page):
    with pytest.raises(CorpusError, match=r"in the report pool, not 13; --run\.eval_windows asks for so many"):
        report_windows(make_manifest(), KEY, lambda _: make_page(2), 13)
    with pytest.raises(CorpusError, match=r"not 99; --ranking\.tokens or --run\.score_windows asks for so many"):
        score_windows(make_manifest(), KEY, 1, ADMITTED, lambda _: make_page(2), 99)


def test_more_windows_go_on_where_fewer_ended(make_manifest, make_page):
    few, many = (report_windows(make_manifest(), KEY, lambda _: make_page(9), n) for n in (3, 9))
    assert many[:3] == few


def test_gathering(make_page):
    rows = gather_picks(lambda page: make_page(9) + 100 * page, [Pick(1, 2), Pick(0, 0)], 4)
    assert rows.tolist() == [[108, 109, 110, 111, 112], [0, 1, 2, 3, 4]]
    assert gather_picks(make_page, [], 4).shape == (0, 5)


def test_keys_are_random_and_known_by_sha256():
    assert len(new_key()) == 32
    assert new_key() != new_key()
    assert key_digest(KEY) == hashlib.sha256(KEY).hexdigest()
