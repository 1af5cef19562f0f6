"""Federated GPT2: one GPT-2 trained on everybody's machines."""

__all__ = ["__version__"]

__version__ = "0.1.0"
