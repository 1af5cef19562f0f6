"""A command line read into a frozen dataclass: flag > environment > file > default.

jsonargparse does the work; here are the few things it does otherwise than DESIGN asks: a file ranks below the
environment wherever it is named, `--axons` has no dot, and a complaint is one line.
Nothing here imports torch, numpy or bittensor: `--help` and a bad flag are answered at once.
"""

import argparse
import os
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jsonargparse

from fedgpt2.cli.flags import ENV_PREFIX, UNDOTTED, Flag, build, flags_of
from fedgpt2.cli.sources import WANTED, read_file, refuse_unknown_environment, suggestion
from fedgpt2.errors import UsageError

__all__ = ["parse"]

S = TypeVar("S")


def parse(settings: type[S], argv: Sequence[str], *, prog: str, about: str) -> S:
    """The settings that `argv`, the environment and `--config FILE` (TOML) ask for.

    Raises UsageError, one line, for an unknown or abbreviated flag, a value of the wrong type or out of range,
    and a file that cannot be read; SystemExit(0) after printing `--help`.
    """
    flags = flags_of(settings)
    words, file = _take_config(argv)
    parser = _parser(flags, prog, about)
    if file:
        parser.set_defaults(read_file(file, flags))
    if "-h" not in words and "--help" not in words:
        refuse_unknown_environment(flags)
        _run(parser, flags, [], source="environment: ")
    values = _run(parser, flags, [_dotted(word) for word in words], source="")
    return build(settings, {flag.key: flag.checked(values[flag.dest]) for flag in flags})


class _Help(argparse.HelpFormatter):
    """Plain argparse help, with the undotted names as people write them."""

    def __init__(self, prog: str) -> None:
        columns = os.environ.get("COLUMNS", "")
        super().__init__(prog, max_help_position=34, width=min(120, int(columns) if columns.isdecimal() else 100))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return _undotted(super()._format_action_invocation(action))


def _parser(flags: Sequence[Flag], prog: str, about: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--config FILE] [--NAME VALUE ...]",
        description=about,
        epilog=f"A setting may also stand in the environment (--round.deadline is {ENV_PREFIX}_ROUND__DEADLINE) or in "
        "the TOML file of --config; flag beats environment beats file beats default. Names are never abbreviated.",
        formatter_class=_Help,
        default_env=True,
        env_prefix=ENV_PREFIX,
        parser_mode="toml",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", action="help", help="show this and leave")
    groups = {"": general}
    for flag in flags:
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        groups[flag.group].add_argument(f"--{flag.key}", **_options(flag))
    return parser


def _options(flag: Flag) -> dict[str, Any]:
    options: dict[str, Any] = {
        "type": flag.kind,
        "default": list(flag.default) if flag.many else flag.default,
        "help": f"{flag.help} (default: {flag.shown_default})".replace("%", "%%"),
        "metavar": "VALUE",
    }
    if flag.many:
        options |= {"nargs": "+"}
    elif flag.kind is bool:
        options |= {"nargs": "?", "const": True, "metavar": "true|false"}
    return options


def _dotted(word: str) -> str:
    """The word of a command line with an undotted name written in full, as the parser knows it."""
    for key, name in UNDOTTED.items():
        if word == f"--{name}" or word.startswith(f"--{name}="):
            return f"--{key}{word.removeprefix(f'--{name}')}"
    return word


def _undotted(text: str) -> str:
    for key, name in UNDOTTED.items():
        text = text.replace(f"--{key}", f"--{name}")
    return text


def _take_config(argv: Sequence[str]) -> tuple[list[str], str]:
    """`argv` without `--config FILE`, and FILE."""
    rest, file, words = [], os.environ.get(f"{ENV_PREFIX}_CONFIG", ""), iter(argv)
    for word in words:
        if word == "--config":
            file = next(words, "")
            if not file or file.startswith("--"):
                raise UsageError("--config: expected a file")
        elif word.startswith("--config="):
            file = word.removeprefix("--config=")
        else:
            rest.append(word)
    return rest, file


def _run(
    parser: jsonargparse.ArgumentParser, flags: Sequence[Flag], words: list[str], source: str
) -> Mapping[str, Any]:
    try:
        return typing.cast("Mapping[str, Any]", parser.parse_args(words, env=True))
    except argparse.ArgumentError as error:
        raise UsageError(source + _one_line(str(error), flags)) from error
    except OverflowError as error:  # hundreds of digits where a float belongs
        raise UsageError(f"{source}{error}") from error


def _one_line(message: str, flags: Sequence[Flag]) -> str:
    """The parser's complaint in one line of ours."""
    if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return _unknown(found[1].split(), flags)
    names = {flag.dest: flag.name for flag in flags}
    if found := re.search(r'Parser key "([^"]+)".*<class \'(\w+)\'>\. Got value: (.*)', message, re.DOTALL):
        return f"{names.get(found[1], found[1])} {found[3]}: not {WANTED.get(found[2], found[2])}"
    return " ".join(_undotted(message).removeprefix("argument ").split())


def _unknown(words: Sequence[str], flags: Sequence[Flag]) -> str:
    names = [flag.name for flag in flags] + ["--config", "--help"]
    for word in words:
        if word.startswith("-"):
            name = _undotted(word.partition("=")[0])
            return f"unknown flag {name}{suggestion(name, names)}"
    return f"unexpected argument {words[0]!r}"
