"""The strategies by the names that settings use."""

from collections.abc import Callable, Mapping

import torch

from fedgpt2.config import Gradient
from fedgpt2.errors import UsageError
from fedgpt2.gradient.exact import Exact
from fedgpt2.gradient.plugin import Plugin
from fedgpt2.gradient.strategy import Strategy

__all__ = ["STRATEGIES", "build"]

STRATEGIES: Mapping[str, Callable[[Gradient, torch.device], Strategy]] = {
    "exact": Exact.build,
    "plugin": lambda config, device: Plugin.build(config),
}


def build(config: Gradient, device: torch.device) -> Strategy:
    """The strategy that the settings name, ready to run on `device`. Raises UsageError, one line."""
    if config.strategy not in STRATEGIES:
        raise UsageError(f"--gradient.strategy {config.strategy}: one of {', '.join(STRATEGIES)}")
    if config.plugin and config.strategy != "plugin":
        raise UsageError(f"--gradient.plugin {config.plugin}: not used without --gradient.strategy plugin")
    return STRATEGIES[config.strategy](config, device)
