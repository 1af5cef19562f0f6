"""`python -m fedgpt2.cli.hostile`, with a miner's flags: the demo's hostile miner. No command lists it."""

import dataclasses
import functools
import sys
from collections.abc import Sequence

from fedgpt2.cli.leaving import leave
from fedgpt2.cli.parsing import parse
from fedgpt2.config import Gradient, MinerConfig

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Serve wrong answers until stopped; the exit code."""
    config = parse(MinerConfig, argv, prog="fedgpt2 miner", about="Sends wrong-shaped, NaN and stale gradients.")
    from fedgpt2.miner.program import run_miner
    from fedgpt2.network.loop import run
    from fedgpt2.simulate.hostile import HostilePacker, no_gradient

    lazy = Gradient(strategy="plugin", plugin=f"{no_gradient.__module__}:{no_gradient.__name__}")
    config = dataclasses.replace(config, gradient=lazy)
    say = functools.partial(print, flush=True)
    return run(lambda stop: run_miner(config, stop, say, packer=HostilePacker()))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
