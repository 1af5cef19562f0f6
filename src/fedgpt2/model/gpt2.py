"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019), whole.

Parameters carry the names and shapes of the published checkpoints (`ModelShape.schema()`); matrices are
[in, out] as there. The head is the token embedding. There is no dropout: a gradient is a function of
weights and tokens, so that anyone can recompute it.

Letters: b windows, t tokens of a window, c width (n_embd), v vocabulary.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedgpt2.errors import UsageError
from fedgpt2.model.attention import causal_attention
from fedgpt2.model.state import FlatState
from fedgpt2.types import ModelShape

__all__ = ["GPT2", "Beat", "initialise"]

Beat = Callable[[], None]  # called often while computing; raises to end it


class GPT2(nn.Module):
    """A GPT-2 whose parameters are views of a `FlatState`; it owns no memory of its own."""

    def __init__(self, shape: ModelShape, weights: FlatState | None = None) -> None:
        """The model of `shape` over `weights`; without them over a new state of zeros."""
        super().__init__()
        self.shape = shape
        with torch.device("meta"):
            self.wte = _embedding(shape.vocab_size, shape.n_embd)
            self.wpe = _embedding(shape.block_size, shape.n_embd)
            self.h = nn.ModuleList(Block(shape.n_embd, shape.n_head) for _ in range(shape.n_layer))
            self.ln_f = nn.LayerNorm(shape.n_embd, eps=1e-5)
        self.weights = FlatState(shape.schema()) if weights is None else weights
        self.grads: FlatState | None = None
        self.bind(self.weights)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.weights.device

    def bind(self, weights: FlatState, grads: FlatState | None = None) -> "GPT2":
        """Make the parameters views of `weights`, and their `.grad` views of `grads`; copies nothing.

        backward() then adds into `grads` in place. Without `grads` no parameter requires a gradient.
        Raises ValueError when a state is not of this model's schema or the two live on different devices.
        """
        schema = self.shape.schema()
        if weights.schema != schema or (grads is not None and grads.schema != schema):
            raise ValueError("state of another model")
        if grads is not None and grads.device != weights.device:
            raise ValueError(f"weights on {weights.device}, gradient on {grads.device}")
        for name, view in weights.views.items():
            parameter = nn.Parameter(view, requires_grad=grads is not None)
            parameter.grad = None if grads is None else grads.views[name]
            owner, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(owner), leaf, parameter)
        self.weights, self.grads = weights, grads
        return self

    def forward(self, tokens: Int[Tensor, "b t"], beat: Beat | None = None) -> Float[Tensor, "b t c"]:
        """Hidden states after the last layer norm, [b, t, c].

        `beat` is called after each block, in the forward and in the backward pass: what it raises ends
        the computation within one block's time. Raises UsageError when t is more than `block_size`.
        """
        if tokens.shape[1] > self.shape.block_size:
            raise UsageError(
                f"windows of {tokens.shape[1]} tokens, but this model reads at most {self.shape.block_size}; "
                "lower --data.seq_len"
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x: Tensor = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x)
            if beat is not None:
                _attach(beat, x)
        return self.ln_f(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Float[Tensor, "*n c"]) -> Float[Tensor, "*n v"]:
        """Scores of every token of the vocabulary: the head is the token embedding."""
        return F.linear(hidden, self.wte.weight)


class Conv1D(nn.Module):
    """The affine map of the published checkpoints: weight [in, out]."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Float[Tensor, "b t i"]) -> Float[Tensor, "b t o"]:
        """x @ weight + bias."""
        flat = torch.addmm(self.bias, x.flatten(0, 1), self.weight)
        return flat.view(*x.shape[:2], -1)


class Attention(nn.Module):
    """Causal self-attention; one matrix makes queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """Each position attends to itself and those before it."""
        qkv = self.c_attn(x).unflatten(2, (3, self.heads, -1))
        return self.c_proj(causal_attention(qkv))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two affine maps with the tanh form of GELU between ("gelu_new")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """[b, t, c] -> [b, t, 4c] -> [b, t, c]."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the MLP, each behind a layer norm and added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """[b, t, c] -> [b, t, c]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


def initialise(shape: ModelShape, seed: int) -> FlatState:
    """Weights as GPT-2 starts from: normal(0, 0.02), residual projections by 1/sqrt(2 n_layer), biases 0, gains 1.

    Drawn on the CPU from one generator in ASCII name order: a seed means the same weights on every device.
    """
    state = FlatState(shape.schema())
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * shape.n_layer)
    for name, view in state.views.items():
        if view.ndim == 2:
            view.normal_(0.0, residual if name.endswith("c_proj.weight") else 0.02, generator=generator)
        elif name.endswith(".weight"):
            view.fill_(1.0)
    return state


def _embedding(rows: int, width: int) -> nn.Embedding:
    """With a weight of its own torch would fill it, and for that load its compiler: 1 s and 100 MB a process."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def _attach(beat: Beat, x: Tensor) -> None:
    beat()
    if x.requires_grad:
        x.register_hook(lambda _gradient: beat())  # type: ignore[no-untyped-call]
