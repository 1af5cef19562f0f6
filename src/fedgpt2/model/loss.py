"""Cross-entropy of the next token without ever holding all logits.

A batch of 2,048 tokens has 412 MB of fp32 logits and as much gradient again. Here logits exist one chunk
of tokens at a time, and their gradient, softmax(z) - onehot(y), is formed in the forward pass while they
are at hand: nothing is recomputed, and the peak of a 124M gradient falls from 7.0 to 2.4 GB (the idea of
Liger's fused linear cross-entropy, Hsu et al. 2024, https://arxiv.org/abs/2410.10989).

Letters: n tokens, b windows, t tokens of a window, c width, v vocabulary.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fedgpt2.errors import UsageError
from fedgpt2.model.gpt2 import GPT2, Beat
from fedgpt2.model.hardware import arithmetic

__all__ = ["CHUNK", "head_loss", "mean_loss", "to_tokens", "window_loss"]

CHUNK = {torch.bfloat16: 2048, torch.float32: 512}  # tokens whose logits exist at once: 206 and 103 MB
_ROWS = {"cpu": 16}  # of them, whose probabilities are formed at once: what lies between stays in the cache
_MORE_ROWS = 1024  # elsewhere: every step is a launch
_WORDS = {"cpu": 8192}  # of the vocabulary, whose gradient is formed at once: all of them take oneDNN an eighth longer


def to_tokens(windows: Shaped[np.ndarray, "n l"], device: torch.device) -> Int[Tensor, "n l"]:
    """Windows of token ids (uint16 or int64) as int64 on `device`."""
    return torch.from_numpy(windows.astype(np.int64)).to(device)


def window_loss(
    model: GPT2, tokens: Int[Tensor, "b l"], *, divisor: int, precision: str, beat: Beat | None = None
) -> Float[Tensor, ""]:
    """Sum of the next-token losses (nats) of windows of l = t + 1 tokens, over `divisor`.

    With the total of target tokens of all micro-batches as `divisor`, their losses and gradients add up to
    the mean over all windows. `beat` as in `GPT2.forward`.
    """
    with arithmetic(model.device, precision):
        hidden = model(tokens[:, :-1], beat)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return head_loss(hidden, model.wte.weight, tokens[:, 1:], divisor=divisor, dtype=dtype, beat=beat)


def head_loss(
    hidden: Float[Tensor, "b t c"],
    weight: Float[Tensor, "v c"],
    targets: Int[Tensor, "b t"],
    *,
    divisor: int,
    dtype: torch.dtype = torch.float32,
    chunk: int = 0,
    beat: Beat | None = None,
) -> Float[Tensor, ""]:
    """Sum of -log softmax(hidden @ weight.T)[target] over `divisor`; matmuls in `dtype`, sums in fp32.

    `chunk` tokens at a time, 0 for what suits `dtype`. `beat` is called before each chunk: the head is a third of a
    small model's work.
    """
    size = chunk or CHUNK[dtype]
    loss: Tensor = _Head.apply(hidden.flatten(0, 1), weight, targets.flatten(), divisor, dtype, size, beat)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def mean_loss(model: GPT2, windows: Shaped[np.ndarray, "n l"], *, micro_batch: int, precision: str) -> float:
    """Mean next-token loss (nats a token) of `windows` [n, t + 1], `micro_batch` of them at a time.

    Raises UsageError when there is no window.
    """
    if len(windows) == 0:
        raise UsageError("no windows to measure the loss on")
    total = windows.shape[0] * (windows.shape[1] - 1)
    loss = 0.0
    for first in range(0, len(windows), micro_batch):
        tokens = to_tokens(windows[first : first + micro_batch], model.device)
        loss += float(window_loss(model, tokens, divisor=total, precision=precision))
    return loss


class _Head(torch.autograd.Function):
    """Loss of hidden states under the tied head; both gradients are ready after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch's context has no type of its own)
        hidden: Float[Tensor, "n c"],
        weight: Float[Tensor, "v c"],
        targets: Int[Tensor, " n"],
        divisor: int,
        dtype: torch.dtype,
        chunk: int,
        beat: Beat | None,
    ) -> Float[Tensor, ""]:
        head = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad) else None
        d_weight = None if d_hidden is None else torch.zeros_like(weight)
        # One buffer for all chunks: it is the largest block there is, and fresh ones cost page faults.
        scores = head.new_empty(min(chunk, len(hidden)), len(weight))
        for first in range(0, len(hidden), chunk):
            if beat is not None:
                beat()
            rows = slice(first, first + chunk)
            part = hidden[rows].to(dtype)
            z = torch.mm(part, head.T, out=scores[: len(part)])
            loss -= _log_likelihood(z, targets[rows], gradient=d_hidden is not None)
            if d_hidden is not None and d_weight is not None:
                d_hidden[rows] = z @ head
                _add_products(d_weight, z, part)
        ctx.divisor = divisor
        ctx.save_for_backward(d_hidden, d_weight)
        return (loss / divisor).float()

    @staticmethod
    def backward(ctx: Any, d_loss: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        d_hidden, d_weight = ctx.saved_tensors
        scale = d_loss / ctx.divisor
        return d_hidden * scale, d_weight.mul_(scale), None, None, None, None, None


def _add_products(d_weight: Float[Tensor, "v c"], z: Float[Tensor, "n v"], hidden: Float[Tensor, "n c"]) -> None:
    """Add z^T hidden."""
    words = _WORDS.get(z.device.type, len(d_weight))
    for d_words, z_words in zip(torch.split(d_weight, words), torch.split(z, words, 1), strict=True):
        d_words.add_(z_words.T @ hidden)


def _log_likelihood(z: Float[Tensor, "n v"], targets: Int[Tensor, " n"], *, gradient: bool) -> Float[Tensor, ""]:
    """Sum of log softmax(z)[target], in fp32; with `gradient` z becomes softmax - onehot, that of the loss.

    With p the probabilities, of which the largest, at max z, is never small: log p[target] = z[target] - max z +
    log max p, without another exponential.
    """
    size = _ROWS.get(z.device.type, _MORE_ROWS)
    total = torch.zeros((), dtype=torch.float64, device=z.device)
    some = torch.empty(min(size, len(z)), z.shape[1], dtype=torch.float32, device=z.device)
    for rows, wanted in zip(torch.split(z, size), torch.split(targets[:, None], size), strict=True):
        p = torch.softmax(rows, -1, dtype=torch.float32, out=some[: len(rows)])
        below = rows.gather(1, wanted).float() - rows.amax(1, keepdim=True).float()
        total += (below + p.amax(1, keepdim=True).log()).sum(dtype=torch.float64)
        if gradient:
            p.scatter_add_(1, wanted, torch.full_like(p[:, :1], -1.0))
            rows.copy_(p)
    return total
