"""A gradient strategy of your own: the mean gradient by plain functional torch.

    fedgpt2 miner --gradient.strategy plugin --gradient.plugin examples.plugin_gradient:gradient

Any framework will do: weights come in and gradients go out as NumPy arrays by the published names.
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm
from torch.nn.functional import scaled_dot_product_attention as attend

from fedgpt2.types import ModelShape


def gradient(
    weights: dict[str, np.ndarray], tokens: np.ndarray, shape: ModelShape
) -> tuple[dict[str, np.ndarray], float]:
    """Mean gradient over all targets of `tokens` [n, l], and the mean loss."""
    w = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    batch, c = torch.from_numpy(tokens), shape.n_embd
    x = w["wte.weight"][batch[:, :-1]] + w["wpe.weight"][: batch.shape[1] - 1]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, (c,), w[f"{name}.weight"], w[f"{name}.bias"])

    def affine(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    for h in (f"h.{layer}" for layer in range(shape.n_layer)):
        qkv = affine(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(c, -1)
        q, k, v = (part.unflatten(-1, (shape.n_head, -1)).transpose(1, 2) for part in qkv)
        x = x + affine(attend(q, k, v, is_causal=True).transpose(1, 2).flatten(2), f"{h}.attn.c_proj")
        hidden = gelu(affine(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), approximate="tanh")
        x = x + affine(hidden, f"{h}.mlp.c_proj")
    logits = norm(x, "ln_f") @ w["wte.weight"].T
    loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    return {name: p.grad.numpy() for name, p in w.items()}, loss.item()
