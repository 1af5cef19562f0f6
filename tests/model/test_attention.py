"""Our attention against torch's, in both passes."""

import pytest
import torch

from fedgpt2.model import attention
from fedgpt2.model.attention import causal_attention


def drawn(windows, tokens, heads, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(windows, tokens, 3, heads, width, generator=generator, dtype=dtype)


def both_passes(attend, qkv):
    """What it attends to, and the gradient for an arbitrary one of that."""
    qkv = qkv.clone().requires_grad_()
    out = attend(qkv)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return out.detach(), qkv.grad


@pytest.mark.parametrize("tokens", [1, 2, 255, 256, 257, 600])
@pytest.mark.parametrize(("windows", "heads"), [(2, 3), (1, 3), (2, 1), (1, 1)])
def test_both_passes_are_torch_s_own(windows, heads, tokens):
    qkv = drawn(windows, tokens, heads, 4)
    for ours, theirs in zip(both_passes(causal_attention, qkv), both_passes(attention._attend, qkv), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tokens", [200, 600])
def test_without_a_gradient_it_is_the_same_to_the_bit(tokens):
    qkv = drawn(2, tokens, 3, 4)
    with torch.no_grad():
        alone = causal_attention(qkv)
    assert torch.equal(alone, both_passes(causal_attention, qkv)[0])


@pytest.mark.parametrize("windows", [1, 2])
def test_what_it_is_given_is_only_read(windows):
    qkv = drawn(windows, 300, 2, 4).requires_grad_()
    before = qkv.detach().clone()
    out = causal_attention(qkv)
    assert torch.equal(qkv, before)
    out.sum().backward()
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize(("dtype", "times"), [(torch.bfloat16, 1.5), (torch.float32, 3)])  # 3e-7 with fp32 by oneDNN
def test_it_is_as_near_to_the_truth_as_torch_s(windows, dtype, times):
    exact = drawn(windows, 200, 2, 32, torch.float32)
    _, truth = both_passes(attention._attend, exact.double())
    _, ours = both_passes(causal_attention, exact.to(dtype))
    _, theirs = both_passes(attention._attend, exact.to(dtype))
    far = [float((gradient.double() - truth).norm() / truth.norm()) for gradient in (ours, theirs)]
    assert far[0] <= times * far[1]


def test_nobody_looks_ahead():
    qkv = drawn(1, 300, 2, 4)
    before, _ = both_passes(causal_attention, qkv)
    qkv[:, 270:] += 1.0
    after, _ = both_passes(causal_attention, qkv)
    assert torch.equal(before[:, :270], after[:, :270])
