"""Digests name exactly the bytes they are of."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.protocol.digests import blob_digest, model_digest

SCHEMA = {"b": (2,), "a": (1, 3)}


@given(st.lists(st.binary(max_size=50), max_size=4), st.sampled_from([1, 2]))
def test_blob_digest_is_blake3_of_the_parts_in_line(parts, threads):
    assert blob_digest(*parts, threads=threads) == blake3(b"".join(parts)).hexdigest()


@given(st.binary(min_size=20, max_size=20), st.integers(0, 19))
def test_model_digest_depends_on_every_byte(data, place):
    other = bytearray(data)
    other[place] ^= 1
    assert model_digest(SCHEMA, memoryview(data)) != model_digest(SCHEMA, memoryview(other))


def test_model_digest_depends_on_names_and_shapes_not_on_their_order():
    data = memoryview(bytes(range(20)))
    reference = model_digest(SCHEMA, data)
    assert model_digest(dict(sorted(SCHEMA.items())), data) == reference
    assert model_digest({"b": (2,), "a": (3, 1)}, data) != reference
    assert model_digest({"b": (2,), "x": (1, 3)}, data) != reference
    assert model_digest(SCHEMA, data.cast("i")) == reference


@pytest.mark.parametrize("size", [16, 24])
def test_model_digest_wants_exactly_the_weights(size):
    with pytest.raises(ValueError, match="20 in the schema"):
        model_digest(SCHEMA, memoryview(bytes(size)))
