"""A keyed permutation of [0, size): anybody with the label can compute any place of it.

A generalised Feistel network on the mixed-radix square [0, a) x [0, b) with cycle walking (J. Black and
P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, section 5): the halves are added to modulo
a and b instead of xored, so the square exceeds `size` by less than its root and hardly a walk is needed.
The round functions are tables, read from the BLAKE3 output stream of the label, so that one evaluation is
eight look-ups. docs/data.md states it byte by byte.
"""

from math import isqrt

import blake3
import numpy as np

__all__ = ["ROUNDS", "Permutation"]

ROUNDS = 8


class Permutation:
    """A bijection of [0, size), size >= 1, fixed by a label."""

    def __init__(self, label: bytes, size: int) -> None:
        self.size = size
        self._a = isqrt(size - 1) + 1  # the smallest a with a * a >= size
        self._b = -(-size // self._a)
        stream = blake3.blake3(label).digest(length=8 * ROUNDS * self._a)
        words = np.frombuffer(stream, dtype="<u8").reshape(ROUNDS, self._a)
        moduli = np.array([self._a, self._b] * (ROUNDS // 2), dtype=np.uint64)
        tables: list[list[int]] = (words % moduli[:, None]).tolist()
        self._rounds = list(zip(tables[::2], tables[1::2], strict=True))  # to the left half, to the right half

    def __call__(self, index: int) -> int:
        """Image of `index`, 0 <= index < size."""
        place = self._step(index)
        while place >= self.size:  # cycle walking
            place = self._step(place)
        return place

    def _step(self, place: int) -> int:
        a, b = self._a, self._b
        left, right = divmod(place, b)
        for to_left, to_right in self._rounds:
            left = (left + to_left[right]) % a
            right = (right + to_right[left]) % b
        return left * b + right
