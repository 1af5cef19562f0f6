"""`fedgpt2 COMMAND …`: finds the command, and turns every failure into one line and an exit code.

A command is a module with `main(argv) -> int`; it is imported when it is asked for, and imports what is heavy
(torch, bittensor, aiohttp) after its flags are read.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from fedgpt2 import __version__
from fedgpt2.cli.exit import leave, leaving_at_once
from fedgpt2.cli.openmp import share_cores
from fedgpt2.cli.sources import suggestion
from fedgpt2.cli.streams import prepare_streams
from fedgpt2.errors import FedGPT2Error, UsageError

__all__ = ["COMMANDS", "console", "main", "reported"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("fedgpt2.cli.demo", "watch a GPT-2 learn from four honest miners and a hostile one, on this machine"),
    "miner": ("fedgpt2.cli.miner", "compute gradients for validators"),
    "validator": ("fedgpt2.cli.validator", "train a GPT-2 with the gradients of miners"),
    "simulate": ("fedgpt2.cli.simulate", "a whole federation in one process: many miners, some of which may lie"),
    "ranking": ("fedgpt2.cli.ranking", "who helped, how we know, and the same once more from the ledger"),
    "sample": ("fedgpt2.cli.sample", "text from a checkpoint of a run"),
    "export": ("fedgpt2.cli.export", "a run's model as a directory that transformers opens"),
    "data": ("fedgpt2.cli.data", "the text of a run: verify it, fetch it ahead, show what a slot trains on"),
    "bench": ("fedgpt2.cli.benches", "measure transport, compute or a whole round against baselines"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 done, 2 bad usage, 1 anything else, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    who = f"fedgpt2 {name}" if name in COMMANDS else "fedgpt2"
    return reported(who, lambda: _dispatch(name, words[1:]))


def reported(who: str, work: Callable[[], int]) -> int:
    """The exit code of `work`, or of its failure, which becomes one line on stderr that begins with `who`."""
    prepare_streams()
    share_cores()
    try:
        return work()
    except FedGPT2Error as error:
        return _complain(who, str(error), error.exit_code)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _complain(who, str(error), 1)
    except KeyboardInterrupt:
        return 130


def console() -> NoReturn:
    """The program `fedgpt2`."""
    leave(main())


def _dispatch(name: str, rest: list[str]) -> int:
    if name in COMMANDS:
        return _run(COMMANDS[name][0], rest)
    if name in ("-h", "--help", ""):
        print(_help())
        return 0 if name else UsageError.exit_code
    if name == "--version":
        print(f"fedgpt2 {__version__}")
        return 0
    what = "flag" if name.startswith("-") else "command"
    raise UsageError(f"unknown {what} {name}{suggestion(name, [*COMMANDS, '--help', '--version'])}")


def _run(module: str, rest: list[str]) -> int:
    try:
        with leaving_at_once():
            command = importlib.import_module(module)
        code: int = command.main(rest)
    except SystemExit as left:  # --help leaves this way
        return left.code if isinstance(left.code, int) else 0
    return code


def _complain(who: str, text: str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be gone as well
        print(f"{who}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def _help() -> str:
    lines = ["usage: fedgpt2 COMMAND [--NAME VALUE ...]", ""]
    lines += [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "fedgpt2 COMMAND --help lists a command's settings; fedgpt2 --version names this version."]
    return "\n".join(lines)
