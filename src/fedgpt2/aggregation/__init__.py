"""How admitted gradients become one."""

from fedgpt2.aggregation.mean import token_weights, weighted_mean

__all__ = ["token_weights", "weighted_mean"]
