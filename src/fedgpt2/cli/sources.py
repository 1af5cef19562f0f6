"""Settings from a TOML file; detection of unknown names in the file and the environment."""

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedgpt2.cli.flags import ENV_PREFIX, UNDOTTED, Flag, flags_of, variable
from fedgpt2.config import MinerConfig, SimulationConfig, ValidatorConfig, path_of
from fedgpt2.errors import UsageError

__all__ = ["OF_OTHER_COMMANDS", "WANTED", "owner", "read_file", "refuse_unknown_environment", "suggestion"]

WANTED: Mapping[str, str] = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}

_NO_SETTINGS = {f"{ENV_PREFIX}_CONFIG", f"{ENV_PREFIX}_WRITE_GOLDEN"}  # the file of --config; used by the tests

_PROGRAMS = {"miner": MinerConfig, "validator": ValidatorConfig, "simulate": SimulationConfig}

# keys of the settings of all other commands, listed so that these commands need not be imported
OF_OTHER_COMMANDS = frozenset(
    [
        "first",
        "head",
        "held_out",
        "json",
        "miner",
        "no_hostile",
        "out",
        "overwrite",
        "pages",
        "preset",
        "prompt",
        "repeats",
        "replay",
        "round",
        "seconds",
        "seed",
        "set",
        "slots",
        "steps",
        "temperature",
        "text",
        "tokens",
        "top_k",
    ]
)


def read_file(file: str, flags: Sequence[Flag]) -> dict[str, Any]:
    """Read the settings of these flags from a TOML file; settings of other programs are ignored.

    Raises UsageError, one line with the file's name: unreadable, not TOML, an unknown setting, a value of another type.
    """
    try:
        table = tomllib.loads(path_of("--config", file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror or error}") from error
    except ValueError as error:  # includes UnicodeDecodeError
        raise UsageError(f"--config {file}: not TOML: {error}") from error
    known = {flag.key: flag for flag in flags}
    everywhere = known.keys() | _keys_of_all_programs()
    values = {}
    for key, value in _flatten(table):
        if key not in everywhere:
            raise UsageError(f"{file}: unknown setting {key}{suggestion(key, everywhere)}")
        if key in known:
            values[key] = _typed(file, known[key], value)
    return values


def refuse_unknown_environment(flags: Sequence[Flag]) -> None:
    """Raise UsageError for a FEDGPT2_ variable that is no setting of any command."""
    known = {flag.env for flag in (*flags, *_flags_of_all_programs())}
    others = {variable(key) for key in OF_OTHER_COMMANDS}
    for name in os.environ:
        if name.startswith(f"{ENV_PREFIX}_") and name not in known | others | _NO_SETTINGS:
            raise UsageError(f"environment: unknown setting {name}{_meant(name, known)}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """The hint `; did you mean NAME?` with the closest of the names; empty if none is close."""
    ordered = sorted(names)
    near = [full for full in ordered if full.startswith(name)] or difflib.get_close_matches(name, ordered, 1, 0.75)
    return f"; did you mean {near[0]}?" if near else ""


def owner(name: str) -> str:
    """The hint which program has the flag `name`; empty if none has."""
    programs = [
        program for program, settings in _PROGRAMS.items() if name in {flag.name for flag in flags_of(settings)}
    ]
    return f"; it is a setting of fedgpt2 {programs[0]}" if programs else ""


def _meant(name: str, known: Iterable[str]) -> str:
    """As `suggestion`, for a variable; flags without a dot have their group's name in the environment."""
    in_full = {variable(short): variable(key) for key, short in UNDOTTED.items()}
    return f"; did you mean {in_full[name]}?" if name in in_full else suggestion(name, known)


def _typed(file: str, flag: Flag, value: Any) -> Any:  # noqa: ANN401
    if flag.many:
        items = value if isinstance(value, list) else [value]
        # TOML files often give ports as numbers
        return [str(item) if type(item) is int else _typed_one(file, flag, item) for item in items]
    return _typed_one(file, flag, value)


def _typed_one(file: str, flag: Flag, value: Any) -> Any:  # noqa: ANN401
    allowed = (int, float) if flag.kind is float else (flag.kind,)
    if type(value) not in allowed:
        raise UsageError(f"{file}: {flag.key} = {value}: not {WANTED[flag.kind.__name__]}")
    return flag.finite(value) if flag.kind is float else value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    dotted = {name: key for key, name in UNDOTTED.items()}
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield dotted.get(prefix + name, prefix + name), value


def _keys_of_all_programs() -> set[str]:
    return {flag.key for flag in _flags_of_all_programs()}


def _flags_of_all_programs() -> Iterator[Flag]:
    for program in _PROGRAMS.values():
        yield from flags_of(program)
