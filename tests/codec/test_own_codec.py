"""A codec of variable length, registered here, in real rounds: both ways, by the validator's own receive path."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgpt2 import codec
from fedgpt2.config import Checkpoint, Codec, Data, Model, Run, SimulationConfig
from fedgpt2.errors import ProtocolError
from fedgpt2.protocol.tensors import PREFIX
from fedgpt2.simulate.program import simulate

from . import deflate

SCHEMA = {"a.weight": (2, 3), "b.bias": (3,), "c": ()}


@pytest.fixture(autouse=True)
def registered():
    deflate.register()
    yield
    del codec.CODECS._items[deflate.NAME]


@given(arrays(np.float32, 10, elements=st.floats(width=32, allow_nan=False)))
def test_values_come_back_and_bodies_keep_their_bounds(values: np.ndarray) -> None:
    which, flat = deflate.Deflate(), torch.from_numpy(values.copy())
    body = which.write(SCHEMA, flat)
    least, most = which.size_bounds(SCHEMA)
    assert least <= body.data.nbytes <= most
    assert len(body.header) + body.data.nbytes <= which.longest_body(SCHEMA)
    layout = which.open(body.header[PREFIX:], SCHEMA, body.data.nbytes)
    assert which.decode(layout, SCHEMA, body.data).numpy().tobytes() == values.tobytes()


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_are_values(data: bytes) -> None:
    which = deflate.Deflate()
    layout = which.open(deflate._HEADER.encode() % (len(data), len(data)), SCHEMA, len(data))
    try:
        values = which.decode(layout, SCHEMA, memoryview(bytearray(data)))
    except (ProtocolError, deflate.zlib.error):
        return
    assert values.shape == (10,)


def test_a_registered_codec_carries_states_and_gradients_of_real_rounds(tmp_path: Path) -> None:
    config = SimulationConfig(
        miners=3,
        rounds=3,
        model=Model(preset="tiny"),
        data=Data(source="sample", windows=2),
        checkpoint=Checkpoint(every=1),
        run=Run(dir=str(tmp_path / "plain"), eval_every=3, eval_windows=4),
    )
    simulate(config)
    own = replace(
        config, codec=Codec(state="deflate", gradient="deflate"), run=replace(config.run, dir=str(tmp_path / "own"))
    )
    simulate(own)
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()]
        for name in ("plain", "own")
    }
    assert [row["model"] for row in rows["own"]] == [row["model"] for row in rows["plain"]]  # it is lossless
    assert all(miner["status"] == "admitted" for row in rows["own"] for miner in row["miners"])
    sizes = {miner["bytes_up"] for row in rows["own"] for miner in row["miners"]}
    assert len(sizes) > 1  # of variable length
    assert codec.get("deflate").exact
