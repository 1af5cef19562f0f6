"""`python -m fedgpt2.cli.demo_validator`: the demo's validator, which writes its events as JSON lines to stdout."""

import sys
from collections.abc import Sequence

from fedgpt2.cli.parsing import parse
from fedgpt2.cli.process import exit_process
from fedgpt2.config import ValidatorConfig
from fedgpt2.errors import FedGPT2Error

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Train until stopped; write an error to stderr as one line; return the exit code."""
    config = parse(ValidatorConfig, argv, prog="fedgpt2 validator", about="Train and write events as JSON lines.")
    from fedgpt2.event_loop import run
    from fedgpt2.observe.feed import Feed
    from fedgpt2.observe.safe_stream import SafeStream
    from fedgpt2.validator.program import run_validator

    feed = Feed(SafeStream(sys.stdout, sys.stderr).say)
    try:
        return run(lambda stop: run_validator(config, stop, feed))
    except FedGPT2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
