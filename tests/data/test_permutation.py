"""The keyed permutation against a slow reading of docs/data.md."""

from itertools import count

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.data.permutation import Permutation


def by_the_book(label: bytes, size: int, value: int) -> int:
    """One place of the permutation, each step as the document states it."""
    a = next(a for a in count(1) if a * a >= size)
    b = -(-size // a)
    stream = blake3.blake3(label).digest(length=64 * a)

    def table(i: int, x: int) -> int:
        at = 8 * (i * a + x)
        return int.from_bytes(stream[at : at + 8], "little")

    while True:
        left, right = divmod(value, b)
        for i in (0, 2, 4, 6):
            left = (left + table(i, right)) % a
            right = (right + table(i + 1, left)) % b
        value = left * b + right
        if value < size:
            return value


@given(label=st.binary(max_size=40), size=st.integers(1, 600))
def test_a_bijection(label: bytes, size: int):
    permutation = Permutation(label, size)
    assert sorted(map(permutation, range(size))) == list(range(size))


@given(label=st.binary(max_size=40), size=st.integers(1, 5000), data=st.data())
def test_as_documented(label: bytes, size: int, data: st.DataObject):
    index = data.draw(st.integers(0, size - 1))
    assert Permutation(label, size)(index) == by_the_book(label, size, index)


@pytest.mark.parametrize("size", [968_000, 968_000_015])
def test_large_domains(size: int):
    permutation = Permutation(b"large", size)
    places = range(0, size, size // 5000)
    images = {permutation(place) for place in places}
    assert len(images) == len(places) >= 5000
    assert 0 <= min(images) < size // 100 < size - size // 100 < max(images) < size


def test_another_label_is_another_order():
    orders = {tuple(map(Permutation(label, 30), range(30))) for label in (b"", b"a", b"b", b"a\n")}
    assert len(orders) == 4


def test_places_are_spread_evenly():
    """Each of 7 images of place 0 is about as frequent over 2,000 labels."""
    hits = [0] * 7
    for key in range(2000):
        hits[Permutation(str(key).encode(), 7)(0)] += 1
    assert all(abs(hit - 2000 / 7) < 5 * (2000 / 7) ** 0.5 for hit in hits)
