"""`fedgpt2 COMMAND …`: runs a command and turns every failure into one line and an exit code.

A command is a module with `main(argv) -> int`. It is imported on demand, and imports heavy packages (torch,
bittensor, aiohttp) only after its flags are parsed.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from fedgpt2 import __version__
from fedgpt2.cli.help import HELP_FLAGS
from fedgpt2.cli.process import exit_on_interrupt, exit_process, limit_spinning, prepare_streams
from fedgpt2.cli.sources import suggestion
from fedgpt2.errors import FedGPT2Error, UsageError

__all__ = ["COMMANDS", "console", "main", "reported"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("fedgpt2.cli.demo", "train a GPT-2 with four honest miners and a hostile one on this machine"),
    "miner": ("fedgpt2.cli.miner", "compute gradients for validators"),
    "validator": ("fedgpt2.cli.validator", "train a GPT-2 with the gradients of miners"),
    "simulate": ("fedgpt2.cli.simulate", "train with many miners, some of them hostile, in one process"),
    "ranking": ("fedgpt2.cli.ranking", "show the ranking; --replay recomputes it from the ledger"),
    "sample": ("fedgpt2.cli.sample", "generate text from a checkpoint of a run"),
    "export": ("fedgpt2.cli.export", "write a run's model as a folder that transformers opens"),
    "data": ("fedgpt2.cli.data", "verify or prefetch the text of a run, or show what a slot trains on"),
    "bench": ("fedgpt2.cli.benches", "measure transport, compute or a whole round against baselines"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 bad usage, 1 any other failure, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    prog = f"fedgpt2 {name}" if name in COMMANDS else "fedgpt2"
    return reported(prog, lambda: _dispatch(name, words[1:]))


def reported(prog: str, work: Callable[[], int]) -> int:
    """Exit code of `work`. A failure becomes one line on stderr that starts with `prog`."""
    prepare_streams()
    limit_spinning()
    try:
        return work()
    except FedGPT2Error as error:
        return _report(prog, str(error), error.exit_code)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _report(prog, str(error), 1)
    except KeyboardInterrupt:
        return 130


def console() -> NoReturn:
    """Entry point of the program `fedgpt2`."""
    exit_process(main())


def _dispatch(name: str, rest: list[str]) -> int:
    if name in COMMANDS:
        return _run(COMMANDS[name][0], rest)
    if not name or name in HELP_FLAGS:
        print(_help())
        return 0 if name else UsageError.exit_code
    if name == "--version":
        print(f"fedgpt2 {__version__}")
        return 0
    what = "flag" if name.startswith("-") else "command"
    raise UsageError(f"unknown {what} {name}{suggestion(name, [*COMMANDS, '--help', '--version'])}")


def _run(module: str, rest: list[str]) -> int:
    try:
        with exit_on_interrupt():
            command = importlib.import_module(module)
        code: int = command.main(rest)
    except SystemExit as left:  # raised by --help
        return left.code if isinstance(left.code, int) else 0
    return code


def _report(prog: str, text: str, code: int) -> int:
    with contextlib.suppress(OSError):  # stderr may be closed too
        print(f"{prog}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def _help() -> str:
    lines = ["usage: fedgpt2 COMMAND [--NAME VALUE ...]", ""]
    lines += [f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "fedgpt2 COMMAND --help shows a command's settings; fedgpt2 --version shows the version."]
    return "\n".join(lines)
