"""Sampling: greedy, drawn, cut to the best."""

import math

import pytest
import torch

from fedgpt2.errors import UsageError
from fedgpt2.model.gpt2 import GPT2, initialise
from fedgpt2.model.sample import generate
from fedgpt2.types import ModelShape

SHAPE = ModelShape(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=31)
PROMPT = torch.tensor([1, 2, 3])


@pytest.fixture
def model():
    return GPT2(SHAPE, initialise(SHAPE, 2))


def draw(model, n=12, seed=0, **settings):
    return generate(model, PROMPT, n, generator=torch.Generator().manual_seed(seed), **settings).tolist()


def test_it_goes_on_past_the_block_size_and_keeps_the_prompt(model):
    tokens = draw(model)
    assert tokens[:3] == [1, 2, 3]
    assert len(tokens) == 15
    assert all(0 <= token < 31 for token in tokens)


def test_a_seed_means_the_same_text(model):
    assert draw(model) == draw(model)
    assert draw(model) != draw(model, seed=1)


def test_zero_temperature_and_top_1_take_the_best(model):
    best = draw(model, temperature=0.0)
    assert best == draw(model, top_k=1, seed=9)
    scores = model.logits(model(PROMPT[None])).detach()[0, -1]
    assert best[3] == int(scores.argmax())


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6])
@pytest.mark.parametrize("top_k", [0, 5])
def test_the_coldest_draws_take_the_best(model, temperature, top_k):
    assert draw(model, temperature=temperature, top_k=top_k) == draw(model, temperature=0.0)


def test_the_hottest_draw_among_the_best_alone(model):
    scores = model.logits(model(PROMPT[None])).detach()[0, -1]
    best = set(scores.topk(2).indices.tolist())
    assert {draw(model, n=1, seed=seed, temperature=1e308, top_k=2)[3] for seed in range(20)} == best


def test_more_than_all_tokens_is_all_tokens(model):
    assert draw(model, top_k=1000) == draw(model)


def test_nothing_to_generate(model):
    assert draw(model, n=0) == [1, 2, 3]


@pytest.mark.parametrize(
    "settings", [{"n": -1}, {"temperature": -0.1}, {"top_k": -1}, {"temperature": math.nan}, {"temperature": math.inf}]
)
def test_settings_that_mean_nothing_are_refused(model, settings):
    with pytest.raises(UsageError):
        draw(model, **settings)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UsageError):
        generate(model, torch.tensor([], dtype=torch.long), 1, generator=torch.Generator())
