"""Aggregation: one gradient from those of all admitted miners."""

from fedgpt2.aggregation.mean import token_weights, weighted_mean

__all__ = ["token_weights", "weighted_mean"]
