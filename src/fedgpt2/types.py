"""The small vocabulary every room shares. No torch, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

__all__ = ["Digest", "Hotkey", "ModelShape", "Schema", "WorkId"]

Hotkey = NewType("Hotkey", str)  # ss58 address of a wallet's hotkey
Digest = NewType("Digest", str)  # BLAKE3, 64 lower-case hex characters
WorkId = NewType("WorkId", str)  # SHA-256 of an order's bytes, 64 lower-case hex characters

Schema = Mapping[str, tuple[int, ...]]  # tensor name -> shape, in ASCII name order


@dataclass(frozen=True)
class ModelShape:
    """The shape of a GPT-2; names and shapes are those of the published checkpoints."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int = 50257

    def schema(self) -> Schema:
        """Name and shape of each parameter, in ASCII name order; the head is tied to `wte.weight`."""
        c = self.n_embd
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, c),
            "wpe.weight": (self.block_size, c),
            "ln_f.weight": (c,),
            "ln_f.bias": (c,),
        }
        block = {
            "ln_1.weight": (c,),
            "ln_1.bias": (c,),
            "attn.c_attn.weight": (c, 3 * c),
            "attn.c_attn.bias": (3 * c,),
            "attn.c_proj.weight": (c, c),
            "attn.c_proj.bias": (c,),
            "ln_2.weight": (c,),
            "ln_2.bias": (c,),
            "mlp.c_fc.weight": (c, 4 * c),
            "mlp.c_fc.bias": (4 * c,),
            "mlp.c_proj.weight": (4 * c, c),
            "mlp.c_proj.bias": (c,),
        }
        for layer in range(self.n_layer):
            shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
        return dict(sorted(shapes.items()))
