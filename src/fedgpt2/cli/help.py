"""The text of `--help` (common settings and an example) and `--help-all` (all settings, by group)."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from fedgpt2.cli.flags import ENV_PREFIX, Flag

__all__ = ["HELP_ALL", "HELP_FLAGS", "help_text"]

HELP_ALL = "--help-all"
HELP_FLAGS = frozenset({"-h", "--help", HELP_ALL})

_INDENT = 32  # column of the descriptions


def help_text(flags: Sequence[Flag], *, prog: str, about: str, example: str, everything: bool) -> str:
    """Help of a command: its common settings with an example command line, or all settings by group.

    A command that marks no setting as common shows all of them.
    """
    common = [flag for flag in flags if flag.common] or list(flags)
    lines = [f"usage: {prog} [--config FILE] [--NAME VALUE ...]", "", about, ""]
    if example:
        lines += [f"example: {example}", ""]
    lines += _by_group(flags) if everything else [_entry(*_of(flag)) for flag in common]
    if not everything and len(common) < len(flags):
        lines += ["", f"{prog} {HELP_ALL} shows {len(flags) - len(common)} more settings."]
    lines += ["", *textwrap.wrap(_SOURCES, _width())]
    return "\n".join(lines)


_SOURCES = (
    f"Settings may also come from the environment (--run.dir is {ENV_PREFIX}_RUN__DIR) or a TOML file "
    "(--config FILE); flags override the environment, the environment overrides the file. docs/settings.md explains "
    "every setting."
)


def _by_group(flags: Sequence[Flag]) -> Iterator[str]:
    yield "general:"
    yield _entry("--config FILE", "TOML file with settings")
    yield _entry("-h, --help", "show the common settings and exit")
    yield _entry(HELP_ALL, "show all settings and exit")
    for name in dict.fromkeys(["", *(flag.group for flag in flags)]):
        if name:
            yield f"\n{name}:"
        yield from (_entry(*_of(flag)) for flag in flags if flag.group == name)


def _of(flag: Flag) -> tuple[str, str]:
    obvious = flag.default in ("", ()) or flag.default is False
    return f"{flag.name} {flag.metavar}".rstrip(), flag.help + ("" if obvious else f" [{flag.shown_default}]")


def _entry(name: str, text: str) -> str:
    """A setting and its description, which starts on a line of its own where the name is long."""
    start = f"  {name}"
    first = start.ljust(_INDENT) if len(start) < _INDENT else f"{start}\n{' ' * _INDENT}"
    wrapped = textwrap.wrap(text, max(_width() - _INDENT, 40))
    return first + f"\n{' ' * _INDENT}".join(wrapped)


def _width() -> int:
    """Columns to use: those of the terminal, at most 120."""
    return min(120, shutil.get_terminal_size((100, 24)).columns)
