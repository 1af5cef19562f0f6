"""The header of a body: canonical when written, checked against the schema when read, never trusted."""

import json
import struct
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.errors import ProtocolError, Reason
from fedgpt2.protocol.tensors import ITEM_BYTES, PREFIX, data_bytes, header_length, read_header, write_header
from fedgpt2.types import ModelShape

SCHEMA = {"a": (2, 3), "b": (4,), "c": ()}

schemas = st.dictionaries(
    st.text(min_size=1, max_size=12), st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6
)
dtypes = st.sampled_from(sorted(ITEM_BYTES))


def entries_of(schema, dtype="F32"):
    """The header as a tree, for a test to damage."""
    return json.loads(write_header(schema, dtype)[PREFIX:])


def refusal(tree, schema=SCHEMA, dtype="F32"):
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    with pytest.raises(ProtocolError) as caught:
        read_header(text, schema, dtype)
    return caught.value.reason


@given(schemas, dtypes)
def test_a_written_header_is_read_as_canonical(schema, dtype):
    header = write_header(schema, dtype)
    length = header_length(header[:PREFIX], 1 << 20)
    layout = read_header(header[PREFIX:], schema, dtype)
    assert len(header) == PREFIX + length
    assert len(header) % 64 == 0
    assert layout.canonical
    assert layout.data_bytes == data_bytes(schema, dtype)
    assert {name: end - start for name, (start, end) in layout.spans.items()} == {
        name: ITEM_BYTES[dtype] * prod(shape) for name, shape in schema.items()
    }


@given(st.permutations(sorted(SCHEMA)))
def test_tensors_may_lie_in_any_order(order):
    start, tree = 0, {}
    for name in order:
        size = 4 * prod(SCHEMA[name])
        tree[name] = {"dtype": "F32", "shape": list(SCHEMA[name]), "data_offsets": [start, start + size]}
        start += size
    layout = read_header(json.dumps(tree).encode(), SCHEMA, "F32")
    assert layout.canonical == (order == sorted(order))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_never_a_header(text):
    assert isinstance(refusal(text), Reason)


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(sorted(SCHEMA)), st.sampled_from(["dtype", "shape", "data_offsets", None]), json_trees)
def test_any_value_in_a_header_is_read_or_refused(name, field, value):
    tree = entries_of(SCHEMA)
    if field is None:
        tree[name] = value
    else:
        tree[name][field] = value
    try:
        layout = read_header(json.dumps(tree).encode(), SCHEMA, "F32")
    except ProtocolError:
        return
    assert layout.data_bytes == data_bytes(SCHEMA, "F32")


@given(st.binary(min_size=8, max_size=8), st.integers(2, 1 << 20))
def test_header_lengths_stay_within_the_limit(prefix, limit):
    (length,) = struct.unpack("<Q", prefix)
    if 2 <= length <= limit:
        assert header_length(prefix, limit) == length
        return
    with pytest.raises(ProtocolError) as caught:
        header_length(prefix, limit)
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize("length", [2, 3, 99, 100])
def test_header_lengths_up_to_the_limit_are_read(length):
    assert header_length(struct.pack("<Q", length), 100) == length


def test_metadata_is_ignored():
    tree = entries_of(SCHEMA) | {"__metadata__": {"format": "pt"}}
    assert read_header(json.dumps(tree).encode(), SCHEMA, "F32").canonical


def test_names_must_be_exactly_those_of_the_schema():
    missing, extra = entries_of(SCHEMA), entries_of(SCHEMA)
    del missing["b"]
    extra["d"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    assert refusal(missing) is Reason.WRONG_NAMES
    assert refusal(extra) is Reason.WRONG_NAMES


def test_shapes_and_dtypes_must_be_exactly_those_of_the_schema():
    transposed = entries_of(SCHEMA)
    transposed["a"]["shape"] = [3, 2]
    assert refusal(transposed) is Reason.WRONG_SHAPE
    assert refusal(entries_of(SCHEMA, "BF16")) is Reason.WRONG_DTYPE
    assert refusal(entries_of(SCHEMA), dtype="BF16") is Reason.WRONG_DTYPE


@pytest.mark.parametrize("offsets", [[0], [0, 24, 24], [-24, 0], [0.0, 24.0], ["0", "24"], [24, 0], [0, 20], None])
def test_offsets_must_fit_the_tensor(offsets):
    tree = entries_of(SCHEMA)
    tree["a"]["data_offsets"] = offsets
    assert refusal(tree) is Reason.BAD_MESSAGE


@pytest.mark.parametrize("shift", [4, -4, 1 << 60])
def test_tensors_neither_overlap_nor_leave_gaps(shift):
    tree = entries_of(SCHEMA)
    tree["b"]["data_offsets"] = [x + shift for x in tree["b"]["data_offsets"]]
    assert refusal(tree) is Reason.BAD_MESSAGE


def test_the_data_region_ends_with_the_last_tensor():
    schema = {"a": (2,), "b": (0,)}
    tree = entries_of(schema)
    tree["a"]["data_offsets"], tree["b"]["data_offsets"] = [0, 8], [8, 8]
    assert read_header(json.dumps(tree).encode(), schema, "F32").data_bytes == 8
    assert refusal({}, {"a": (2,)}) is Reason.WRONG_NAMES
    assert read_header(b"{}", {}, "F32").data_bytes == 0


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'{"a":', b"[" * 100_000, b"1" * 10_000])
def test_what_is_not_an_object_is_refused(text):
    assert refusal(text) is Reason.BAD_MESSAGE


def test_an_entry_has_exactly_its_three_fields():
    tree = entries_of(SCHEMA)
    tree["a"]["more"] = 1
    assert refusal(tree) is Reason.BAD_MESSAGE


def test_the_published_small_model_is_498_megabytes():
    schema = ModelShape(n_layer=12, n_head=12, n_embd=768, block_size=1024).schema()
    header = write_header(schema, "F32")
    assert data_bytes(schema, "F32") == 4 * 124_439_808
    assert struct.unpack("<Q", header[:8])[0] == len(header) - 8 < 1 << 20
