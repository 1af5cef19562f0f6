"""`python -m fedgpt2.cli.hostile`: a miner that attacks, with a miner's flags; for the demo and for tests."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fedgpt2.cli.demo_miners import CYCLE
from fedgpt2.cli.main import reported
from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process import exit_process
from fedgpt2.config import MinerConfig, setting

__all__ = ["HostileConfig", "main"]


@dataclass(frozen=True)
class HostileConfig(MinerConfig):
    """Settings of a hostile miner."""

    attack: tuple[str, ...] = setting(
        CYCLE, "attacks of docs/aggregation.md or package.module:function, in turn", common=True
    )


def main(argv: Sequence[str]) -> int:
    """Answer orders with attacks until stopped; return the exit code."""
    config = parse(HostileConfig, argv, prog="fedgpt2 miner", about="Answer orders with attacks until stopped.")
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
    exit_process(reported("fedgpt2.cli.hostile", lambda: main(sys.argv[1:])))
