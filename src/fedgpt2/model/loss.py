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

CHUNK = 512  # tokens whose logits exist at once: 50 MB in bf16, 103 MB in fp32


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
    chunk: int = CHUNK,
    beat: Beat | None = None,
) -> Float[Tensor, ""]:
    """Sum of -log softmax(hidden @ weight.T)[target] over `divisor`; matmuls in `dtype`, sums in fp32.

    `beat` is called before each chunk: the head is a third of a small model's work.
    """
    loss: Tensor = _Head.apply(hidden.flatten(0, 1), weight, targets.flatten(), divisor, dtype, chunk, beat)  # type: ignore[no-untyped-call]
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
        d_weight = torch.zeros_like(weight) if any(ctx.needs_input_grad) else None
        # Two buffers for all chunks: these blocks are the largest there are, and fresh ones cost page faults.
        scores = head.new_empty(min(chunk, len(hidden)), len(weight))
        log_p = torch.empty_like(scores, dtype=torch.float32)
        for first in range(0, len(hidden), chunk):
            if beat is not None:
                beat()
            rows = slice(first, first + chunk)
            part = hidden[rows].to(dtype)
            z, p = scores[: len(part)], log_p[: len(part)]
            torch.mm(part, head.T, out=z)
            torch.log_softmax(z, -1, dtype=torch.float32, out=p)
            loss -= p.gather(1, targets[rows, None]).sum(dtype=torch.float64)
            if d_hidden is not None and d_weight is not None:
                d_scores = z.copy_(_d_scores(p, targets[rows]))
                d_hidden[rows] = d_scores @ head
                d_weight += d_scores.T @ part
        ctx.divisor = divisor
        ctx.save_for_backward(d_hidden, d_weight)
        return (loss / divisor).float()

    @staticmethod
    def backward(ctx: Any, d_loss: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        d_hidden, d_weight = ctx.saved_tensors
        scale = d_loss / ctx.divisor
        return d_hidden * scale, d_weight.mul_(scale), None, None, None, None, None


def _d_scores(log_p: Float[Tensor, "n v"], targets: Int[Tensor, " n"]) -> Float[Tensor, "n v"]:
    """softmax - onehot, over `log_p`'s own memory."""
    p = log_p.exp_()
    return p.scatter_add_(1, targets[:, None], torch.full_like(p[:, :1], -1.0))
