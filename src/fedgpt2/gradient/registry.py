"""The gradient strategies by name; a new one is a file and a `register` line."""

from collections.abc import Callable

import torch

from fedgpt2.config import Gradient
from fedgpt2.errors import UsageError
from fedgpt2.gradient.exact import Exact
from fedgpt2.gradient.plugin import Plugin
from fedgpt2.gradient.strategy import Strategy
from fedgpt2.registry import Registry

__all__ = ["STRATEGIES", "build"]

STRATEGIES: Registry[Callable[[Gradient, torch.device], Strategy]] = Registry("strategy")
STRATEGIES.register("exact", Exact.build)
STRATEGIES.register("plugin", lambda config, device: Plugin.build(config))


def build(config: Gradient, device: torch.device) -> Strategy:
    """The strategy that the settings name, ready to run on `device`. Raises UsageError, one line."""
    factory = STRATEGIES.get(config.strategy, "--gradient.strategy")
    if config.plugin and config.strategy != "plugin":
        raise UsageError(f"--gradient.plugin {config.plugin}: not used without --gradient.strategy plugin")
    return factory(config, device)
