"""The flags of a settings dataclass, and the dataclass built from their values.

A setting is a dataclass field made with `config.setting`; a field that is itself a dataclass is a group:
`ValidatorConfig.round.deadline` is `--round.deadline`, `FEDGPT2_ROUND__DEADLINE`, and `deadline` under
`[round]` in a TOML file.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedgpt2.errors import UsageError

__all__ = ["ENV_PREFIX", "UNDOTTED", "Flag", "build", "flags_of", "variable"]

ENV_PREFIX = "FEDGPT2"

# flags without a dot whose setting is in a group
UNDOTTED: Mapping[str, str] = {"axons.addresses": "axons"}

S = TypeVar("S")


@dataclass(frozen=True)
class Flag:
    """One setting on the command line."""

    key: str  # "round.deadline"
    kind: type  # str, int, float or bool
    many: bool  # a tuple of `kind`
    default: Any
    help: str
    common: bool = False  # shown by --help, not only by --help-all
    note: str = ""  # for docs/settings.md
    least: float | None = None
    most: float | None = None

    @property
    def name(self) -> str:
        """The flag as written on the command line."""
        return f"--{UNDOTTED.get(self.key, self.key)}"

    @property
    def env(self) -> str:
        """The environment variable of the same setting."""
        return variable(self.dest)

    @property
    def dest(self) -> str:
        """The key as the parser stores it."""
        return self.key.replace("-", "_")

    @property
    def group(self) -> str:
        """Name of the settings group; empty for none."""
        return self.key.rpartition(".")[0]

    @property
    def shown_default(self) -> str:
        """The default as help and documentation print it."""
        text = " ".join(map(str, self.default)) if self.many else str(self.default)
        return text.lower() if self.kind is bool else text or "none"

    @property
    def metavar(self) -> str:
        """The value as help and documentation print it; empty for a switch that is off by default."""
        if self.kind is bool:
            return "true|false" if self.default else ""
        return {str: "TEXT", int: "N", float: "X"}[self.kind] + (" ..." if self.many else "")

    def checked(self, value: Any) -> Any:  # noqa: ANN401  (a value of the field's own type)
        """Convert the value to the field's type. Raises UsageError if it is out of range or not finite."""
        if self.many:
            # one word may hold several values: "8091 8092" from the environment
            return tuple(part for word in value for part in str(word).replace(",", " ").split())
        value = self.finite(value) if self.kind is float else self.kind(value)
        if self.least is not None and value < self.least:
            raise UsageError(f"{self.name} {value}: at least {self.least:g}")
        if self.most is not None and value > self.most:
            raise UsageError(f"{self.name} {value}: at most {self.most:g}")
        return value

    def finite(self, value: float) -> float:
        """Convert to a float. Raises UsageError for NaN, which no bound catches, and infinity, as `1e400` is read."""
        try:
            number = float(value)
        except OverflowError:  # a very large whole number in a TOML file
            number = math.inf
        if not math.isfinite(number):
            raise UsageError(f"{self.name} {number}: not a finite number")
        return number


def variable(key: str) -> str:
    """Environment variable of a setting, by its key as the parser stores it."""
    return f"{ENV_PREFIX}_{key.replace('.', '__').upper()}"


def flags_of(settings: type) -> tuple[Flag, ...]:
    """All flags of a settings dataclass and its groups, in field order."""
    return tuple(_walk(settings, None, ""))


def build(settings: type[S], values: Mapping[str, Any]) -> S:
    """Build the dataclass from a checked value for each flag key."""
    return _build(settings, values, "")


def _walk(settings: type, defaults: Any, prefix: str) -> Iterator[Flag]:  # noqa: ANN401
    for name, key, kind, field in _fields(settings, prefix):
        default = field.default if defaults is None else getattr(defaults, name)
        if dataclasses.is_dataclass(kind):
            yield from _walk(kind, default, f"{key}.")
        else:
            many = typing.get_origin(kind) is tuple
            one = typing.get_args(kind)[0] if many else kind
            meta: dict[str, Any] = {name: value for name, value in field.metadata.items() if name != "flag"}
            yield Flag(key, one, many, default, **meta)


def _build(settings: type[S], values: Mapping[str, Any], prefix: str) -> S:
    made: dict[str, Any] = {}
    for name, key, kind, _ in _fields(settings, prefix):
        made[name] = _build(kind, values, f"{key}.") if dataclasses.is_dataclass(kind) else values[key]
    return settings(**made)


def _fields(settings: type, prefix: str) -> Iterator[tuple[str, str, type, dataclasses.Field[Any]]]:
    """Yield each field's name, key, type and the field; `flag` in its metadata overrides the key."""
    types = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name = field.metadata.get("flag", field.name)
        yield field.name, prefix + name, types[field.name], field
