"""GPT-2 and its gradient in numpy, as "Model" and "Gradient" of docs/protocol.md state them: for numpy_miner.py."""

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Tensors = dict[str, Array]  # in ASCII order of their names
Step = tuple[Array, Callable[[Array], Array]]  # a value, and the way back from its gradient to its argument's


class GPT2:
    """The model and its gradient. Each step gives its value and the way back, which adds into the gradients `g`."""

    def __init__(self, weights: Tensors, heads: int, layers: int) -> None:
        self.w, self.heads, self.layers = weights, heads, layers
        self.g = {name: np.zeros_like(tensor) for name, tensor in weights.items()}

    def gradient(self, windows: Array, check: Callable[[], None]) -> float:
        """Mean loss over the targets of `windows` [n, L + 1]; its gradient is in `g` then. `check` raises to end it."""
        length, loss = windows.shape[1] - 1, 0.0
        for window in windows:
            check()
            x, steps = self.w["wte.weight"][window[:-1]] + self.w["wpe.weight"][:length], []
            for layer in range(self.layers):
                x, back = self._block(x, f"h.{layer}")
                steps.append(back)
            h, back = self._norm(x, "ln_f")
            part, dh = self._head(h, window[1:], len(windows) * length)
            dx = back(dh)
            for step in reversed(steps):
                dx = step(dx)
            np.add.at(self.g["wte.weight"], window[:-1], dx)
            self.g["wpe.weight"][:length] += dx
            loss += part
        return loss

    def _block(self, x: Array, name: str) -> Step:
        a, back_1 = self._norm(x, f"{name}.ln_1")
        y, back_2 = self._attention(a, f"{name}.attn")
        x = x + y
        m, back_3 = self._norm(x, f"{name}.ln_2")
        u, back_4 = self._affine(m, f"{name}.mlp.c_fc")
        v, back_5 = self._gelu(u)
        y, back_6 = self._affine(v, f"{name}.mlp.c_proj")

        def back(dy: Array) -> Array:
            dy = dy + back_3(back_4(back_5(back_6(dy))))
            return dy + back_1(back_2(dy))

        return x + y, back

    def _affine(self, x: Array, name: str) -> Step:
        def back(dy: Array) -> Array:
            self.g[f"{name}.weight"] += x.T @ dy
            self.g[f"{name}.bias"] += dy.sum(0)
            return dy @ self.w[f"{name}.weight"].T

        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"], back

    def _norm(self, x: Array, name: str) -> Step:
        centred = x - x.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        unit = centred * scale

        def back(dy: Array) -> Array:
            self.g[f"{name}.weight"] += (dy * unit).sum(0)
            self.g[f"{name}.bias"] += dy.sum(0)
            d = dy * self.w[f"{name}.weight"]
            return scale * (d - d.mean(-1, keepdims=True) - unit * (d * unit).mean(-1, keepdims=True))

        return unit * self.w[f"{name}.weight"] + self.w[f"{name}.bias"], back

    def _gelu(self, u: Array) -> Step:
        slope = math.sqrt(2 / math.pi)
        t = np.tanh(slope * (u + 0.044715 * u * u * u))
        return 0.5 * u * (1 + t), lambda dy: dy * 0.5 * (1 + t + u * (1 - t * t) * slope * (1 + 0.134145 * u * u))

    def _attention(self, x: Array, name: str) -> Step:
        (t, c), d = x.shape, x.shape[1] // self.heads
        qkv, back_qkv = self._affine(x, f"{name}.c_attn")
        q, k, v = qkv.reshape(t, 3, self.heads, d).transpose(1, 2, 0, 3)
        p = softmax(np.where(np.tri(t, dtype=bool), q @ k.swapaxes(1, 2) / math.sqrt(d), np.float32(-np.inf)))
        y, back_y = self._affine((p @ v).swapaxes(0, 1).reshape(t, c), f"{name}.c_proj")

        def back(dy: Array) -> Array:
            do = back_y(dy).reshape(t, self.heads, d).swapaxes(0, 1)
            dp = do @ v.swapaxes(1, 2)
            ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / math.sqrt(d)
            parts = np.stack((ds @ k, ds.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ do))
            return back_qkv(parts.transpose(2, 0, 1, 3).reshape(t, 3 * c))

        return y, back

    def _head(self, h: Array, targets: Array, total: int) -> tuple[float, Array]:
        """Loss under the tied head, and the gradient of `h` [L, c]; logits exist for 256 tokens at a time."""
        wte, dh, loss = self.w["wte.weight"], np.empty_like(h), 0.0
        for first in range(0, len(h), 256):
            rows = slice(first, first + 256)
            p = softmax(h[rows] @ wte.T)
            hit = np.arange(len(p)), targets[rows]
            loss -= float(np.log(p[hit], dtype=np.float64).sum()) / total
            p[hit] -= 1
            p /= total
            dh[rows] = p @ wte
            self.g["wte.weight"] += p.T @ h[rows]
        return loss, dh


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
