"""Text from a model, one token at a time."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from fedgpt2.errors import UsageError
from fedgpt2.model.gpt2 import GPT2

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: GPT2,
    prompt: Int[Tensor, " t"],
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator,
) -> Int[Tensor, " m"]:
    """`prompt` followed by `n` sampled tokens, int64 on the CPU.

    Scores are divided by `temperature` (0 takes the best token) and all but the `top_k` best are dropped
    (0 keeps all). The model sees the last `block_size` tokens. `generator` lives on the CPU, where tokens
    are drawn. Raises UsageError for an empty prompt or a number that is negative or not finite.
    """
    if len(prompt) == 0 or n < 0 or top_k < 0 or not 0 <= temperature < math.inf:
        raise UsageError("sampling needs a prompt, and no negative or endless length, temperature or top_k")
    tokens = prompt.cpu().long()
    for _ in range(n):
        context = tokens[-model.shape.block_size :].to(model.device)
        scores = model.logits(model(context[None])[:, -1])[0].float().cpu()
        tokens = torch.cat([tokens, _draw(scores, temperature, top_k, generator)])
    return tokens


def _draw(scores: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Int[Tensor, "1"]:
    if temperature == 0:
        return scores.argmax()[None]
    if top_k:
        worst = scores.topk(min(top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < worst, float("-inf"))
    # in double, and from the best down: no temperature that a float holds makes a NaN of it
    ratios = (scores - scores.max()).double() / temperature
    return torch.multinomial(torch.softmax(ratios, -1).float(), 1, generator=generator)
