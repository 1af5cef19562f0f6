"""`fedgpt2 validator`."""

import sys
from collections.abc import Sequence

from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process import exit_on_interrupt
from fedgpt2.config import ValidatorConfig

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Train until the rounds are done or the program is stopped; return the exit code."""
    config = parse(
        ValidatorConfig,
        argv,
        prog="fedgpt2 validator",
        about="Train a GPT-2 with the gradients of the miners at --axons; resume the run found in --run.dir.",
        example="fedgpt2 validator --wallet.name validator --axons 8091 8092 --device cuda:0",
    )
    with exit_on_interrupt():
        from fedgpt2.event_loop import run
        from fedgpt2.observe.factory import observer_for
        from fedgpt2.validator.program import run_validator

    with observer_for(sys.stdout, plain=config.run.plain) as observer:
        return run(lambda stop: run_validator(config, stop, observer))
