"""`fedgpt2 miner`."""

import sys
from collections.abc import Sequence

from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process import exit_on_interrupt
from fedgpt2.config import MinerConfig

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Serve gradients until stopped; return the exit code."""
    config = parse(
        MinerConfig,
        argv,
        prog="fedgpt2 miner",
        about="Compute gradients for validators until stopped.",
        example="fedgpt2 miner --wallet.name miners --wallet.hotkey M1 --axon.port 8091 --device cuda:0",
    )
    with exit_on_interrupt():
        from fedgpt2.event_loop import run
        from fedgpt2.miner.program import run_miner
        from fedgpt2.observe.safe_stream import SafeStream

    say = SafeStream(sys.stdout, sys.stderr).say
    return run(lambda stop: run_miner(config, stop, say))
