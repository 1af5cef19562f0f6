"""A hostile miner, for demos and tests: `python -m fedgpt2.cli.hostile` with a miner's flags. No command lists it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fedgpt2.cli.demo_miners import CYCLE
from fedgpt2.cli.exit import leave
from fedgpt2.cli.main import reported
from fedgpt2.cli.parsing import parse
from fedgpt2.config import MinerConfig, setting

__all__ = ["HostileConfig", "main"]


@dataclass(frozen=True)
class HostileConfig(MinerConfig):
    """A miner's settings, and its attacks."""

    attack: tuple[str, ...] = setting(
        CYCLE, "attacks of docs/simulation.md or package.module:function, one per order, in turn"
    )


def main(argv: Sequence[str]) -> int:
    """Serve hostile contributions until stopped; the exit code."""
    config = parse(HostileConfig, argv, prog="fedgpt2 miner", about="A miner that sends hostile contributions.")
    from fedgpt2.event_loop import run
    from fedgpt2.gradient.registry import build
    from fedgpt2.miner.program import run_miner
    from fedgpt2.model import hardware
    from fedgpt2.observe.safe_stream import SafeStream
    from fedgpt2.simulate.hostile import Hostile

    device = hardware.prepare(config.device, config.run.threads)
    hostile = Hostile(config.attack, build(config.gradient, device))
    say = SafeStream(sys.stdout, sys.stderr).say
    return run(lambda stop: run_miner(config, stop, say, packer=hostile, strategy=hostile))


if __name__ == "__main__":
    leave(reported("fedgpt2.cli.hostile", lambda: main(sys.argv[1:])))
