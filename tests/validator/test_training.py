"""Weights as the optimizer moves them and as miners hold them."""

import pytest
import torch

from fedgpt2 import codec
from fedgpt2.errors import CheckpointError
from fedgpt2.model.state import FlatState
from fedgpt2.protocol.digests import blob_digest, model_digest
from fedgpt2.protocol.tensors import read_header
from fedgpt2.storage.checkpoints import Checkpoint
from fedgpt2.validator.training import Training

from .conftest import with_settings

CPU = torch.device("cpu")


@pytest.fixture(params=["fp32", "bf16"])
def training(config, request):
    return Training(with_settings(config, codec={"state": request.param}), CPU)


def normal(seed):
    """Forms a random aggregate."""
    return lambda out: out.normal_(generator=torch.Generator().manual_seed(seed))


def moved(training, steps=2):
    """The training after some steps along a fixed direction."""
    for number in range(1, steps + 1):
        training.aggregate(normal(number))
        training.step(training.rate(number, 0))
    return training


def received(training, snapshot):
    """What a miner has after reading the snapshot."""
    schema = training.config.model.shape.schema()
    which = codec.get(snapshot.blob.ref.codec)
    header, data = snapshot.blob.header, snapshot.blob.data
    assert snapshot.blob.ref.digest == blob_digest(header, data)
    assert snapshot.blob.ref.length == len(header) + data.nbytes
    return FlatState(schema, which.decode(read_header(header[8:], schema, which.dtype), schema, data))


def test_the_parent_of_a_round_is_what_miners_hold(training):
    for _ in range(2):
        snapshot = training.snapshot()
        theirs = received(training, snapshot)
        assert snapshot.model == training.digest() == model_digest(theirs.schema, theirs.memory())
        own = training.weights.flat
        assert torch.equal(theirs.flat, own.bfloat16().float() if training.codec.name == "bf16" else own)
        moved(training)


def test_a_step_moves_the_weights_kept_in_full_and_so_the_digest(training):
    before, digest = training.weights.flat.clone(), training.digest()
    moved(training, 1)
    assert training.digest() != digest
    assert not torch.equal(training.weights.flat, before)


def test_the_loss_is_that_of_the_broadcast_weights(training, corpus):
    windows = corpus.report(b"k" * 32, 4)
    moved(training)
    loss = training.loss(windows)
    twin = Training(with_settings(training.config, codec={"state": "fp32"}), CPU)
    twin.weights.copy_(received(training, training.snapshot()))
    assert twin.loss(windows) == loss


def test_a_continuation_is_bit_identical(training):
    kept = moved(training).capture({"round": 2})
    copy = Checkpoint(
        {name: tensor.clone() for name, tensor in kept.model.items()},
        {name: tensor.clone() for name, tensor in kept.optimizer.items()},
        kept.state,
    )
    again = Training(training.config, CPU)
    again.restore(lambda *schemas: copy)
    assert again.digest() == training.digest()
    for each in (training, again):
        moved(each)
    assert torch.equal(again.weights.flat, training.weights.flat)
    assert again.snapshot().blob.ref == training.snapshot().blob.ref


def test_weights_that_are_not_those_the_state_names_are_refused(training):
    kept = moved(training).capture({"round": 2})
    wrong = Checkpoint(kept.model, kept.optimizer, {**kept.state, "model": "0" * 64})
    with pytest.raises(CheckpointError, match="not those its state names"):
        Training(training.config, CPU).restore(lambda *schemas: wrong)


def test_the_scoring_gradient_is_the_slope_of_the_broadcast_weights_loss_and_moves_nothing(training, corpus):
    windows = corpus.report(b"k" * 32, 4)
    moved(training)
    before, digest = training.weights.flat.clone(), training.digest()
    gradient = training.scoring_gradient(windows).clone()
    assert torch.equal(training.weights.flat, before)
    assert training.digest() == digest
    twin = Training(with_settings(training.config, codec={"state": "fp32"}), CPU)
    twin.weights.copy_(received(training, training.snapshot()))
    at, length = twin.loss(windows), 2e-4 * twin.weights.norm()
    twin.weights.flat.sub_(gradient, alpha=length / float(gradient.norm()))
    assert (at - twin.loss(windows)) / length == pytest.approx(float(gradient.norm()), rel=0.05)
