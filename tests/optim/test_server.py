"""The optimizer against torch's own, and its continuation after a restart."""

import math

import pytest
import torch

from fedgpt2.config import Optimizer
from fedgpt2.errors import CheckpointError, Reason, Refused, UsageError
from fedgpt2.model.state import FlatState
from fedgpt2.optim.server import build
from fedgpt2.types import ModelShape

SCHEMA = ModelShape(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=11).schema()
SIZE = FlatState(SCHEMA).flat.numel()


def normal(seed, scale=1.0):
    return FlatState(SCHEMA, scale * torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)))


def step(optimizer, gradient, lr):
    norm = optimizer.clip(gradient)
    optimizer.step(gradient, lr)
    return norm


def run(optimizer, rounds, lr=0.01):
    return [step(optimizer, normal(100 + r), lr / (r + 1)) for r in rounds]


def test_adamw_is_torch_adamw_with_decay_of_matrices_only():
    config = Optimizer(clip=0.0, weight_decay=0.3)
    weights = normal(1)
    dense = {name: torch.nn.Parameter(view.clone()) for name, view in weights.views.items()}
    groups = [
        {"params": [p for p in dense.values() if p.ndim == 2], "weight_decay": 0.3},
        {"params": [p for p in dense.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    ours = build(config, weights)
    for r in range(5):
        gradient = normal(50 + r)
        for name, p in dense.items():
            p.grad = gradient.views[name].clone()
        for group in reference.param_groups:
            group["lr"] = 0.01 / (r + 1)
        reference.step()
        ours.step(gradient, 0.01 / (r + 1))
    for name, p in dense.items():
        torch.testing.assert_close(weights.views[name], p.detach(), rtol=1e-5, atol=1e-7)


def test_sgd_is_one_subtraction():
    weights, gradient = normal(1), normal(2)
    expected = weights.flat - 0.3 * gradient.flat
    build(Optimizer(name="sgd", clip=0.0), weights).step(gradient, 0.3)
    torch.testing.assert_close(weights.flat, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("scale", "clipped"), [(10.0, True), (1e-3, False)])
def test_clip_returns_the_norm_before_clipping(scale, clipped):
    weights, gradient = normal(1), normal(2, scale)
    before, start = gradient.clone(), weights.clone()
    norm = step(build(Optimizer(name="sgd", clip=1.0), weights), gradient, 1.0)
    assert norm == pytest.approx(float(before.flat.double().norm()), rel=1e-12)
    moved = float((start.flat - weights.flat).double().norm())
    assert moved == pytest.approx(1.0 if clipped else norm, rel=1e-4)


def test_zero_clip_means_no_clipping():
    gradient = normal(2, 100.0)
    build(Optimizer(clip=0.0), normal(1)).clip(gradient)
    assert torch.equal(gradient.flat, normal(2, 100.0).flat)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_preview_is_the_step_to_the_bit_and_changes_nothing(name):
    optimizer, out, gradient = build(Optimizer(name=name), normal(1)), normal(9), normal(3)
    run(optimizer, range(3))
    before = {key: tensor.clone() for key, tensor in {**optimizer.tensors(), "w": optimizer.weights.flat}.items()}
    for lr in (0.02, 0.01):
        optimizer.preview(gradient, lr, out)
    after = {**optimizer.tensors(), "w": optimizer.weights.flat}
    assert all(torch.equal(before[key], after[key]) for key in before)
    optimizer.step(gradient, 0.01)
    assert torch.equal(out.flat, optimizer.weights.flat)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_continuation_is_bit_identical(name):
    config = Optimizer(name=name)
    whole = build(config, normal(1))
    run(whole, range(6))
    first = build(config, normal(1))
    run(first, range(3))
    saved = {key: tensor.clone() for key, tensor in first.tensors().items()}
    second = build(config, first.weights.clone())
    second.load(saved)
    run(second, range(3, 6))
    assert second.steps == 6
    assert torch.equal(second.weights.flat, whole.weights.flat)
    for key, tensor in whole.tensors().items():
        assert torch.equal(second.tensors()[key], tensor)


def test_a_step_does_not_depend_on_the_past_of_the_process():
    results = []
    for _ in range(2):
        optimizer = build(Optimizer(), normal(1))
        run(optimizer, range(3))
        results.append(optimizer.weights.flat)
    assert torch.equal(*results)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_aggregate_changes_nothing(bad):
    optimizer, gradient = build(Optimizer(), normal(1)), normal(2)
    gradient.flat[17] = bad
    with pytest.raises(Refused) as caught:
        optimizer.clip(gradient)
    assert caught.value.reason is Reason.NON_FINITE
    assert torch.equal(optimizer.weights.flat, normal(1).flat)
    assert optimizer.steps == 0


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: without(t, "exp_avg"),
        lambda t: without(t, "step"),
        lambda t: {**t, "more": t["step"]},
        lambda t: {**t, "exp_avg": t["exp_avg"][:-1]},
        lambda t: {**t, "exp_avg_sq": t["exp_avg_sq"].double()},
        lambda t: {**t, "step": torch.tensor(3.0)},
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(spoil):
    optimizer = build(Optimizer(), normal(1))
    run(optimizer, range(2))
    before = {key: tensor.clone() for key, tensor in optimizer.tensors().items()}
    with pytest.raises(CheckpointError):
        optimizer.load(spoil(before))
    assert all(torch.equal(tensor, before[key]) for key, tensor in optimizer.tensors().items())


def test_moments_are_live_buffers_not_copies():
    optimizer = build(Optimizer(), normal(1))
    moment = optimizer.tensors()["exp_avg"]
    run(optimizer, range(1))
    assert moment.abs().sum() > 0


def test_unknown_optimizer_is_bad_usage():
    with pytest.raises(UsageError, match="adamw, sgd"):
        build(Optimizer(name="lion"), normal(1))
