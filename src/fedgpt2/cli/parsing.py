"""Parse a command line into a settings dataclass: flag > environment > file > default.

jsonargparse parses; this module adds what it lacks: the file ranks below the environment, `--axons` has no dot, and
an error is one line. Nothing here imports torch, numpy or bittensor, so `--help` and a bad flag are answered at once.
"""

import argparse
import os
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jsonargparse

from fedgpt2.cli.flags import ENV_PREFIX, UNDOTTED, Flag, build, flags_of
from fedgpt2.cli.help import HELP_ALL, HELP_FLAGS, help_text
from fedgpt2.cli.sources import WANTED, owner, read_file, refuse_unknown_environment, suggestion
from fedgpt2.errors import UsageError

__all__ = ["parse"]

S = TypeVar("S")


def parse(settings: type[S], argv: Sequence[str], *, prog: str, about: str, example: str = "") -> S:
    """Settings from `argv`, the environment and `--config FILE` (TOML).

    Raises UsageError, one line, for an unknown or abbreviated flag, a value of the wrong type or out of range, and a
    file that cannot be read. `--help` and `--help-all` print `about`, `example` and the flags, and raise SystemExit(0).
    """
    flags = flags_of(settings)
    if HELP_FLAGS.intersection(argv):
        print(help_text(flags, prog=prog, about=about, example=example, everything=HELP_ALL in argv))
        raise SystemExit(0)
    words, file = _take_config(argv)
    parser = _parser(flags)
    if file:
        parser.set_defaults(read_file(file, flags))
    refuse_unknown_environment(flags)
    _run(parser, flags, [], source="environment: ")
    values = _run(parser, flags, [_dotted(word) for word in words], source="")
    return build(settings, {flag.key: flag.checked(values[flag.dest]) for flag in flags})


def _parser(flags: Sequence[Flag]) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        default_env=True,
        env_prefix=ENV_PREFIX,
        parser_mode="toml",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    for flag in flags:
        parser.add_argument(f"--{flag.key}", **_options(flag))
    return parser


def _options(flag: Flag) -> dict[str, Any]:
    options: dict[str, Any] = {"type": flag.kind, "default": list(flag.default) if flag.many else flag.default}
    if flag.many:
        options |= {"nargs": "+"}
    elif flag.kind is bool:
        options |= {"nargs": "?", "const": True}
    return options


def _dotted(word: str) -> str:
    """A word of the command line, an undotted flag replaced by its full key."""
    for key, name in UNDOTTED.items():
        if word == f"--{name}" or word.startswith(f"--{name}="):
            return f"--{key}{word.removeprefix(f'--{name}')}"
    return word


def _undotted(text: str) -> str:
    for key, name in UNDOTTED.items():
        text = text.replace(f"--{key}", f"--{name}")
    return text


def _take_config(argv: Sequence[str]) -> tuple[list[str], str]:
    """Split off `--config FILE`: the other words, and FILE."""
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
    except OverflowError as error:  # hundreds of digits for a float
        raise UsageError(f"{source}{error}") from error


def _one_line(message: str, flags: Sequence[Flag]) -> str:
    """The parser's error in one line."""
    if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return _unknown(found[1].split(), flags)
    names = {flag.dest: flag.name for flag in flags}
    if found := re.search(r'Parser key "([^"]+)".*<class \'(\w+)\'>\. Got value: (.*)', message, re.DOTALL):
        return f"{names.get(found[1], found[1])} {found[3]}: not {WANTED.get(found[2], found[2])}"
    return " ".join(_undotted(message).removeprefix("argument ").split())


def _unknown(words: Sequence[str], flags: Sequence[Flag]) -> str:
    names = [flag.name for flag in flags] + ["--config", "--help", HELP_ALL]
    for word in words:
        if word.startswith("-"):
            name = _undotted(word.partition("=")[0])
            return f"unknown flag {name}{suggestion(name, names) or owner(name)}"
    return f"unexpected argument {words[0]!r}"
