"""GPT-2 against the transformers package, and its parameters as views of one buffer."""

import math
from math import prod

import numpy as np
import pytest
import torch

from fedgpt2.config import PRESETS
from fedgpt2.errors import UsageError
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.loss import head_loss, mean_loss, window_loss
from fedgpt2.model.state import FlatState
from fedgpt2.types import ModelShape

SHAPE = ModelShape(n_layer=2, n_head=4, n_embd=32, block_size=24, vocab_size=211)
PUBLISHED = {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200}


def peer(shape, weights):
    """transformers' GPT-2 with our weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        n_positions=shape.block_size,
        vocab_size=shape.vocab_size,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    missing, unexpected = model.transformer.load_state_dict(dict(weights.views), strict=False)
    assert not missing
    assert not unexpected
    return model


@pytest.fixture
def weights():
    """Weights larger than the initial ones, so that every path carries something."""
    state = initialise(SHAPE, 3)
    state.flat.add_(torch.randn(state.flat.shape, generator=torch.Generator().manual_seed(4)), alpha=0.08)
    return state


@pytest.fixture
def tokens():
    return torch.randint(0, SHAPE.vocab_size, (3, 21), generator=torch.Generator().manual_seed(5))


def gradient(weights, tokens, precision):
    grads = weights.empty_like()
    model = GPT2(SHAPE, weights).bind(weights, grads)
    loss = window_loss(model, tokens, divisor=tokens[:, 1:].numel(), precision=precision)
    loss.backward()
    return float(loss.detach()), grads


def peer_gradient(weights, tokens):
    model = peer(SHAPE, weights)
    logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.transformer.named_parameters()}


@pytest.mark.parametrize(("preset", "count"), PUBLISHED.items())
def test_presets_have_the_published_sizes(preset, count):
    assert sum(prod(shape) for shape in PRESETS[preset].schema().values()) == count


def test_state_dict_is_the_schema(weights):
    model = GPT2(SHAPE, weights)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == dict(SHAPE.schema())


def test_logits_agree_with_transformers(weights, tokens):
    model = GPT2(SHAPE, weights)
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model(tokens)), peer(SHAPE, weights)(tokens).logits, rtol=1e-5, atol=1e-5
        )


def test_loss_and_every_gradient_agree_with_transformers(weights, tokens):
    loss, grads = gradient(weights, tokens, "fp32")
    expected_loss, expected = peer_gradient(weights, tokens)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert set(expected) == set(grads.views)
    for name, view in grads.views.items():
        torch.testing.assert_close(view, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_bf16_gradient_points_the_same_way(weights, tokens):
    loss, grads = gradient(weights, tokens, "bf16")
    expected_loss, expected = peer_gradient(weights, tokens)
    assert loss == pytest.approx(expected_loss, rel=1e-2)
    flat = torch.cat([expected[name].flatten() for name in grads.views])
    assert torch.cosine_similarity(grads.flat.double(), flat.double(), dim=0) > 0.999


def test_initial_weights_are_the_published_distribution():
    shape = PRESETS["nano"]
    views = initialise(shape, 1).views
    assert views["wte.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert views["wpe.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert views["h.0.attn.c_attn.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert views["h.3.mlp.c_proj.weight"].std() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert all((v == 1).all() for name, v in views.items() if v.ndim == 1 and name.endswith("weight"))
    assert all((v == 0).all() for name, v in views.items() if name.endswith("bias"))


def test_a_seed_means_the_same_weights():
    assert torch.equal(initialise(SHAPE, 7).flat, initialise(SHAPE, 7).flat)
    assert not torch.equal(initialise(SHAPE, 7).flat, initialise(SHAPE, 8).flat)


def test_initial_loss_is_that_of_guessing():
    model = GPT2(SHAPE, initialise(SHAPE, 1))
    windows = np.random.default_rng(0).integers(0, SHAPE.vocab_size, (4, 21))
    loss = mean_loss(model, windows, micro_batch=2, precision="fp32")
    assert loss == pytest.approx(math.log(SHAPE.vocab_size), rel=0.01)


def test_bind_makes_views_and_never_copies(weights):
    grads = weights.empty_like()
    model = GPT2(SHAPE, weights).bind(weights, grads)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == weights.views[name].data_ptr()
        assert parameter.grad.data_ptr() == grads.views[name].data_ptr()
    model.bind(weights)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_backward_adds_in_place(weights, tokens):
    _, once = gradient(weights, tokens, "fp32")
    grads = weights.empty_like()
    model = GPT2(SHAPE, weights).bind(weights, grads)
    for _ in range(2):
        window_loss(model, tokens, divisor=tokens[:, 1:].numel(), precision="fp32").backward()
    torch.testing.assert_close(grads.flat, 2 * once.flat)
    assert all(p.grad.data_ptr() == grads.views[name].data_ptr() for name, p in model.named_parameters())


def test_bind_refuses_another_model_or_device(weights):
    model = GPT2(SHAPE, weights)
    other = FlatState(PRESETS["tiny"].schema())
    with pytest.raises(ValueError, match="another model"):
        model.bind(other)
    with pytest.raises(ValueError, match="another model"):
        model.bind(weights, other)
    with pytest.raises(ValueError, match="gradient on meta"):
        model.bind(weights, weights.to("meta"))


def test_too_long_a_window_names_the_setting(weights):
    with pytest.raises(UsageError, match=r"--data\.seq_len"):
        GPT2(SHAPE, weights)(torch.zeros(1, 25, dtype=torch.long))


def test_a_model_without_weights_is_zero():
    model = GPT2(SHAPE)
    assert model.weights.norm() == 0.0
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("chunk", [1, 7, 60, 512])
def test_chunked_loss_is_the_dense_one(chunk):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 20, 16, generator=generator, requires_grad=True)
    weight = torch.randn(91, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 91, (3, 20), generator=generator)
    dense = torch.nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(dense, (hidden, weight))
    loss = head_loss(hidden, weight, targets, divisor=60, chunk=chunk)
    torch.testing.assert_close(loss, dense)
    for got, want in zip(torch.autograd.grad(3 * loss, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(got, 3 * want, rtol=1e-5, atol=1e-6)


def test_a_hopeless_target_costs_a_finite_loss():
    hidden, weight = torch.tensor([[[300.0]]]), torch.tensor([[1.0], [-1.0]])
    loss = head_loss(hidden, weight, torch.tensor([[1]]), divisor=1)
    assert float(loss) == pytest.approx(600.0)


def test_mean_loss_does_not_depend_on_the_micro_batch(weights):
    model = GPT2(SHAPE, weights)
    windows = np.random.default_rng(1).integers(0, SHAPE.vocab_size, (5, 13)).astype(np.uint16)
    whole = mean_loss(model, windows, micro_batch=5, precision="fp32")
    assert mean_loss(model, windows, micro_batch=2, precision="fp32") == pytest.approx(whole, rel=1e-6)
    assert mean_loss(model, windows, micro_batch=2, precision="bf16") == pytest.approx(whole, rel=1e-2)


def test_mean_loss_of_nothing_is_refused(weights):
    with pytest.raises(UsageError, match="no windows"):
        mean_loss(GPT2(SHAPE, weights), np.zeros((0, 5), np.int64), micro_batch=1, precision="fp32")
