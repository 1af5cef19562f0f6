"""FlatState: one buffer, many names, no copies."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load

from fedgpt2.model.state import FlatState
from fedgpt2.types import ModelShape

SCHEMA = {"b": (2, 3), "a": (4,), "h.10": (1,), "h.2": (1,)}
DIMENSIONS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def test_views_share_the_buffer_in_ascii_order():
    state = FlatState(SCHEMA)
    state.flat.copy_(torch.arange(12.0))
    assert list(state.views) == ["a", "b", "h.10", "h.2"]
    assert state.views["b"].tolist() == [[4, 5, 6], [7, 8, 9]]
    state.views["a"].fill_(-1)
    assert state.flat[:4].tolist() == [-1] * 4


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=5), DIMENSIONS, min_size=1, max_size=6))
def test_views_tile_the_buffer(schema):
    state = FlatState(schema)
    state.flat.copy_(torch.arange(float(state.flat.numel())))
    laid_out = torch.cat([state.views[name].flatten() for name in sorted(schema)])
    assert torch.equal(laid_out, state.flat)
    assert all(tuple(state.views[name].shape) == shape for name, shape in schema.items())


def test_memory_is_the_buffer_itself():
    state = FlatState(SCHEMA)
    memory = state.memory()
    assert memory.nbytes == 48
    assert not memory.readonly
    memory[:4] = np.float32(2.5).tobytes()
    assert state.flat[0] == 2.5


def test_data_region_is_safetensors_data():
    shape = ModelShape(n_layer=1, n_head=1, n_embd=4, block_size=4, vocab_size=7)
    state = FlatState(shape.schema(), torch.randn(sum(map(np.prod, shape.schema().values()))))
    header, offset = {}, 0
    for name, view in state.views.items():
        header[name] = {"dtype": "F32", "shape": list(view.shape), "data_offsets": [offset, offset + 4 * view.numel()]}
        offset += 4 * view.numel()
    text = str(header).replace("'", '"').encode()
    loaded = safetensors_load(len(text).to_bytes(8, "little") + text + bytes(state.memory()))
    assert all(torch.equal(loaded[name], view) for name, view in state.views.items())


@pytest.mark.parametrize("flat", [torch.zeros(11), torch.zeros(12, dtype=torch.float64), torch.zeros(24)[::2]])
def test_refuses_a_buffer_of_another_kind(flat):
    with pytest.raises(ValueError, match="contiguous fp32"):
        FlatState(SCHEMA, flat)


def test_clone_zero_copy_and_to():
    state = FlatState(SCHEMA, torch.arange(12.0))
    twin = state.clone()
    state.zero_()
    assert state.flat.abs().sum() == 0
    assert twin.flat.tolist() == list(range(12))
    assert state.copy_(twin).flat.tolist() == twin.flat.tolist()
    assert state.to("cpu") is state
    assert state.empty_like().flat.tolist() == [0.0] * 12
    with pytest.raises(ValueError, match="different schemas"):
        state.copy_(FlatState({"a": (12,)}))


def test_memory_of_another_device_is_refused():
    with pytest.raises(ValueError, match="CPU"):
        FlatState(SCHEMA).to("meta").memory()


def test_norm_is_exact_where_fp32_sums_are_not():
    state = FlatState({"a": (3_000_000,)}, torch.full((3_000_000,), 0.1))
    expected = np.sqrt(3_000_000 * np.float64(np.float32(0.1)) ** 2)
    assert state.norm() == pytest.approx(expected, rel=1e-12)
