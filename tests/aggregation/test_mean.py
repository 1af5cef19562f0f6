"""The weighted mean against a dense float64 reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgpt2.aggregation import mean, token_weights, weighted_mean


@given(tokens=st.lists(st.integers(1, 10**9), min_size=1, max_size=32))
def test_weights_are_shares_of_the_assigned_tokens(tokens: list[int]) -> None:
    weights = token_weights(tokens)
    assert sum(weights) == pytest.approx(1)
    assert weights == [pytest.approx(count / sum(tokens)) for count in tokens]


@pytest.mark.parametrize("tokens", [[], [0], [3, -1]])
def test_counts_must_be_positive(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        token_weights(tokens)


@given(n=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_agrees_with_a_dense_reference_across_blocks(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    block, mean._BLOCK = mean._BLOCK, 7
    try:
        rows = list(torch.randn(n, 20, generator=generator))
        weights = token_weights(torch.randint(1, 100, (n,), generator=generator).tolist())
        out = weighted_mean(rows, weights, torch.full((20,), 9.0))
    finally:
        mean._BLOCK = block
    dense = (torch.stack(rows).double() * torch.tensor(weights).double()[:, None]).sum(0)
    assert torch.allclose(out.double(), dense, atol=1e-6)


def test_equal_parts_of_a_batch_give_the_batch() -> None:
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.0])]
    assert weighted_mean(rows, token_weights([200, 100]), torch.empty(2)).tolist() == [2.0, 4.0]
