"""Causal self-attention, with a bf16 gradient of our own on CPUs.

torch's CPU kernel for scaled dot-product attention takes longer than the matrix products it consists of, most of all
backwards (`fedgpt2 bench compute` measures the whole gradient). Here the products go to the same routines as any other
matmul, a window and a block of queries at a time, and the backward pass forms the probabilities again (Dao et al.,
"FlashAttention", 2022, https://arxiv.org/abs/2205.14135, appendix B, for the equations). Nothing but q, k and v is kept
between the passes. Everywhere else, and in fp32 where long windows would lose by it, torch's own kernel does both.

Letters: b windows, t tokens of a window, h heads, e width of a head, c = h e, r queries, s keys.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["causal_attention"]

_QUERIES = 128  # of a block: keys after its last query are not looked at


def causal_attention(qkv: Float[Tensor, "b t 3 h e"]) -> Float[Tensor, "b t c"]:
    """softmax(q k^T / sqrt(e)) v for each head, each position looking at itself and those before it."""
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and qkv.requires_grad:
        attended: Tensor = _Attention.apply(qkv)  # type: ignore[no-untyped-call]
        return attended
    return _attend(qkv)


def _attend(qkv: Float[Tensor, "b t 3 h e"]) -> Float[Tensor, "b t c"]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Float[Tensor, "b t 3 h e"]) -> Float[Tensor, "b t c"]:  # noqa: ANN401
        ctx.save_for_backward(qkv)
        out = torch.empty_like(qkv[:, :, 0])
        for window, y in zip(qkv, out, strict=True):
            _window_forward(window, y)
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, d_out: Float[Tensor, "b t c"]) -> Float[Tensor, "b t 3 h e"]:  # noqa: ANN401
        (qkv,) = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        d_heads = d_out.reshape(*qkv.shape[:2], *qkv.shape[3:])
        for window, d_window, d_y in zip(qkv, d_qkv, d_heads, strict=True):
            _window_backward(window, d_y.transpose(0, 1), d_window)
        return d_qkv


def _window_forward(qkv: Float[Tensor, "t 3 h e"], out: Float[Tensor, "t h e"]) -> None:
    q, k, v = qkv.permute(1, 2, 0, 3).contiguous().unbind(0)
    q.mul_(1.0 / math.sqrt(q.shape[-1]))
    y = out.transpose(0, 1)
    for first in range(0, q.shape[1], _QUERIES):
        rows, seen = slice(first, first + _QUERIES), slice(0, first + _QUERIES)
        y[:, rows] = _probabilities(q[:, rows], k[:, seen]) @ v[:, seen]


def _window_backward(qkv: Float[Tensor, "t 3 h e"], d_y: Float[Tensor, "h t e"], out: Float[Tensor, "t 3 h e"]) -> None:
    """Gradient of one window: dv = p^T dy; ds = p (dp - rowsum(dp p)), dp = dy v^T; dq = ds k, dk = ds^T q."""
    q, k, v = qkv.permute(1, 2, 0, 3).contiguous().unbind(0)
    d_q, d_k, d_v = out.permute(1, 2, 0, 3).unbind(0)
    scale = 1.0 / math.sqrt(q.shape[-1])
    q.mul_(scale)  # a copy of its own: so nothing larger has to be scaled
    for first in range(0, q.shape[1], _QUERIES):
        rows, past, new = slice(first, first + _QUERIES), slice(0, first), slice(first, first + _QUERIES)
        queries, keys, values = q[:, rows], k[:, : rows.stop], v[:, : rows.stop]
        d_rows = d_y[:, rows].contiguous()
        p = _probabilities(queries, keys)
        d_s = torch._softmax_backward_data(d_rows @ values.transpose(1, 2), p, -1, p.dtype)
        d_q[:, rows] = (d_s @ keys).mul_(scale)
        d_k[:, new] = d_s[..., new].transpose(1, 2) @ queries
        d_v[:, new] = p[..., new].transpose(1, 2) @ d_rows
        if first:
            d_k[:, past] += d_s[..., past].transpose(1, 2) @ queries
            d_v[:, past] += p[..., past].transpose(1, 2) @ d_rows


def _probabilities(queries: Float[Tensor, "h r e"], keys: Float[Tensor, "h s e"]) -> Float[Tensor, "h r s"]:
    """Of the last r of s positions, whose queries are scaled."""
    scores = queries @ keys.transpose(1, 2)
    r = scores.shape[1]
    later = torch.ones(r, r, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., -r:].masked_fill_(later, -math.inf)
    return torch.softmax(scores, -1)
