"""Causal self-attention, on CPUs in matrix products of our own.

torch's CPU kernel for scaled dot-product attention takes longer than the products it consists of: backwards, and in
fp32 with windows of a few hundred tokens, several times as long (`fedgpt2 bench compute` measures the whole gradient).
Here they go to the same routines as any other matmul, a block of queries of all windows and heads at a time: few large
products, for each costs the threads a meeting.
Windows of more than a block keep only q, k and v between the passes, and form the probabilities again (Dao et al.,
"FlashAttention", 2022, https://arxiv.org/abs/2205.14135, appendix B, for the equations). On other devices torch's own
kernel does both.

Letters: b windows, t tokens of a window, h heads, e width of a head, c = h e, bh = b h, r queries, s keys.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["causal_attention"]

_QUERIES = 256  # of a block: keys after its last query are not looked at


def causal_attention(qkv: Float[Tensor, "b t 3 h e"]) -> Float[Tensor, "b t c"]:
    """softmax(q k^T / sqrt(e)) v for each head, each position looking at itself and those before it."""
    if qkv.device.type != "cpu":
        return _attend(qkv)
    attended: Tensor = _Attention.apply(qkv)  # type: ignore[no-untyped-call]
    return attended


def _attend(qkv: Float[Tensor, "b t 3 h e"]) -> Float[Tensor, "b t c"]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Float[Tensor, "b t 3 h e"]) -> Float[Tensor, "b t c"]:  # noqa: ANN401
        b, t, _, h, e = qkv.shape
        q, k, v = _heads(qkv)
        out = torch.empty_like(q)
        kept = []
        for rows in _blocks(t):
            p = _probabilities(q[:, rows], k[:, : rows.stop])
            out[:, rows] = p @ v[:, : rows.stop]
            kept += [p] if t <= _QUERIES else []
        ctx.save_for_backward(qkv, *kept)
        return out.view(b, h, t, e).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, d_out: Float[Tensor, "b t c"]) -> Float[Tensor, "b t 3 h e"]:  # noqa: ANN401
        """dv = p^T dy; ds = p (dp - rowsum(dp p)), dp = dy v^T; dq = ds k, dk = ds^T q."""
        qkv, *kept = ctx.saved_tensors
        b, t, _, h, e = qkv.shape
        q, k, v = _heads(qkv)
        d_y = d_out.reshape(b, t, h, e).transpose(1, 2).reshape(b * h, t, e)
        d_q, d_k, d_v = d_qkv = torch.zeros(3, b * h, t, e, dtype=qkv.dtype)
        for rows in _blocks(t):
            seen = slice(0, rows.stop)
            p = kept[0] if kept else _probabilities(q[:, rows], k[:, seen])
            d_s = torch._softmax_backward_data(d_y[:, rows] @ v[:, seen].transpose(1, 2), p, -1, p.dtype)
            d_q[:, rows] = d_s @ k[:, seen]
            d_k[:, seen] += d_s.transpose(1, 2) @ q[:, rows]
            d_v[:, seen] += p.transpose(1, 2) @ d_y[:, rows]
        d_q.mul_(1.0 / math.sqrt(e))
        return d_qkv.view(3, b, h, t, e).permute(1, 3, 0, 2, 4)


def _heads(qkv: Float[Tensor, "b t 3 h e"]) -> tuple[Float[Tensor, "bh t e"], ...]:
    """Scaled queries, keys and values, each head of each window by itself. May be views: nothing is to be written."""
    b, t, _, h, e = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, b * h, t, e).unbind(0)
    return q * (1.0 / math.sqrt(e)), k, v


def _blocks(t: int) -> list[slice]:
    return [slice(first, min(first + _QUERIES, t)) for first in range(0, t, _QUERIES)]


def _probabilities(queries: Float[Tensor, "bh r e"], keys: Float[Tensor, "bh s e"]) -> Float[Tensor, "bh r s"]:
    """Of the last r of s positions, whose queries are scaled."""
    scores = queries @ keys.transpose(1, 2)
    r = scores.shape[1]
    scores[..., -r:] += scores.new_full((r, r), -math.inf).triu_(1)
    return torch.softmax(scores, -1)
