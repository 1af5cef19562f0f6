"""The learning rate of a round."""

import math

from fedgpt2.config import Optimizer

__all__ = ["learning_rate"]


def learning_rate(round: int, config: Optimizer, horizon: int = 0) -> float:
    """Learning rate of the step that ends round `round`, counted from 0.

    Linear warm-up reaches `lr` in round `warmup - 1`; then a cosine falls to `min_lr` at round `horizon`
    and stays there (Loshchilov and Hutter, "SGDR", 2017, https://arxiv.org/abs/1608.03983, eq. 5 without
    restarts). `horizon` 0, or one not beyond the warm-up: `lr` for ever after the warm-up.
    """
    if round < config.warmup:
        return config.lr * (round + 1) / config.warmup
    if horizon <= config.warmup:
        return config.lr
    progress = min(1.0, (round - config.warmup) / (horizon - config.warmup))
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))
