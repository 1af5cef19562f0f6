"""Every registered codec through one suite."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load as safetensors_load

from fedgpt2 import codec
from fedgpt2.errors import Reason, Refused
from fedgpt2.protocol.tensors import Layout, read_header

SCHEMA = {"b.bias": (3,), "a.weight": (2, 3), "c": ()}
D = 10
codecs = pytest.mark.parametrize("name", codec.CODECS.names)
values = arrays(np.float32, D, elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))


def body(which: codec.Dense, flat: torch.Tensor) -> tuple[bytes, bytes]:
    return which.header(SCHEMA), bytes(which.encode(flat))


@codecs
@given(array=values)
def test_round_trip_is_within_the_stated_bound(name: str, array: np.ndarray) -> None:
    which, flat = codec.get(name), torch.from_numpy(array.copy())
    header, data = body(which, flat)
    layout = read_header(header[8:], SCHEMA, which.dtype)
    back = which.decode(layout, SCHEMA, memoryview(bytearray(data)))
    assert back.dtype == torch.float32
    assert bool(((back - flat).abs() <= which.relative_error * flat.abs() + 1e-37).all())


@codecs
@given(array=values)
def test_rounding_in_place_is_a_round_trip(name: str, array: np.ndarray) -> None:
    which, flat = codec.get(name), torch.from_numpy(array.copy())
    header, data = body(which, flat)
    back = which.decode(read_header(header[8:], SCHEMA, which.dtype), SCHEMA, memoryview(bytearray(data)))
    assert which.exact == (which.buffer(flat) is None)
    for by in (None, which.buffer(flat)):
        rounded = torch.from_numpy(array.copy())
        which.round_(rounded, by)
        assert rounded.numpy().tobytes() == back.numpy().tobytes()
        assert by is None or bytes(which.encode(rounded)) == by.view(torch.uint8).numpy().tobytes() == data


@codecs
def test_body_is_a_safetensors_file(name: str) -> None:
    which, flat = codec.get(name), torch.arange(D, dtype=torch.float32)
    header, data = body(which, flat)
    tensors = safetensors_load(header + data)
    assert {k: tuple(v.shape) for k, v in tensors.items()} == SCHEMA
    assert tensors["a.weight"].float().flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert len(header) % 64 == 0
    assert len(data) == which.data_bytes(SCHEMA)


@codecs
def test_tensors_in_another_order_are_put_right(name: str) -> None:
    which = codec.get(name)
    item = which.data_bytes({"x": (1,)})
    spans = {"c": (0, item), "b.bias": (item, 4 * item), "a.weight": (4 * item, 10 * item)}
    layout = Layout(which.dtype, spans, 10 * item)
    assert not layout.canonical
    stored = torch.tensor([9.0, 6, 7, 8, 0, 1, 2, 3, 4, 5])
    data = memoryview(bytearray(which.encode(stored)))
    out = torch.empty(D)
    assert which.decode(layout, SCHEMA, data, out).tolist() == list(range(D))
    assert which.decode(layout, SCHEMA, data).tolist() == list(range(D))


def test_fp32_copies_nothing() -> None:
    which, flat = codec.get("fp32"), torch.arange(D, dtype=torch.float32)
    memory = which.encode(flat)
    flat[0] = 42
    layout = read_header(which.header(SCHEMA)[8:], SCHEMA, "F32")
    received = bytearray(memory)
    decoded = which.decode(layout, SCHEMA, memoryview(received))
    received[0:4] = b"\0\0\0\0"
    assert memory[:4] == torch.tensor(42.0).numpy().tobytes()
    assert decoded[0] == 0


def test_bf16_rounds_into_the_buffers_it_is_given() -> None:
    which, flat = codec.get("bf16"), torch.full((D,), 1.0 + 2**-9)
    sent, received = torch.empty(D, dtype=torch.bfloat16), torch.empty(D)
    data = which.encode(flat, sent)
    layout = read_header(which.header(SCHEMA)[8:], SCHEMA, "BF16")
    assert which.decode(layout, SCHEMA, memoryview(bytearray(data)), received) is received
    assert received.tolist() == [1.0] * D
    assert sent.tolist() == [1.0] * D


def test_unknown_codec_is_refused() -> None:
    with pytest.raises(Refused, match="known here: fp32, bf16") as caught:
        codec.get("zip")
    assert caught.value.reason is Reason.UNSUPPORTED_CODEC
