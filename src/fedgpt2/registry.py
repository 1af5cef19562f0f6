"""Things that settings choose by name: registered ones, and a user's own, imported as `package.module:object`."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from fedgpt2.errors import FedGPT2Error, UsageError

__all__ = ["Registry", "load", "plugin_errors"]

T = TypeVar("T")

_FAILURES = (Exception, SystemExit)  # foreign code may raise an error of its own kind, or call sys.exit()


class Registry(Generic[T]):
    """Items of one kind by name, in the order in which they were registered.

    With `adapt`, a name may also be `package.module:object`: `adapt(name, object)` makes an item of the imported
    object, or raises TypeError with one line that says what is expected.
    """

    def __init__(self, kind: str, adapt: Callable[[str, object], T] | None = None) -> None:
        """`kind` is what error lines call an item: "rule", "codec", …."""
        self._kind = kind
        self._adapt = adapt
        self._items: dict[str, T] = {}
        self._imported: dict[str, T] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the registered items."""
        return tuple(self._items)

    def register(self, name: str, item: T) -> None:
        """Add an item. Raises ValueError for a name that is taken or looks like an import path."""
        if name in self._items or ":" in name:
            raise ValueError(f"{name!r} is no free name of a {self._kind}")
        self._items[name] = item

    def __getitem__(self, name: str) -> T:
        """The item registered under `name`. Raises KeyError."""
        return self._items[name]

    def get(self, name: str, flag: str) -> T:
        """The item that the setting `flag` names. Raises UsageError, one line that lists the registered names."""
        if name in self._items:
            return self._items[name]
        if self._adapt is None or ":" not in name:
            raise UsageError(f"{flag} {name}: no such {self._kind}; one of {', '.join(self._items)}")
        if name not in self._imported:
            loaded = load(name, flag)
            with plugin_errors(lambda what: UsageError(f"{flag} {name}: {what}")):
                self._imported[name] = self._adapt(name, loaded)
        return self._imported[name]


def load(path: str, flag: str) -> object:
    """Import `package.module:object`, from the current folder too. Raises UsageError, one line, when that fails."""
    module_name, _, attribute = path.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"{flag} {path!r}: write it as package.module:object")
    with plugin_errors(lambda what: UsageError(f"{flag} {path}: {what}")):
        module = _import(module_name)
    if not hasattr(module, attribute):
        raise UsageError(f"{flag} {path}: {module_name} has no {attribute}")
    loaded: object = getattr(module, attribute)
    return loaded


def _import(name: str) -> object:
    """Import a module; the current folder is on the path only meanwhile."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


@contextmanager
def plugin_errors(failure: Callable[[str], FedGPT2Error], passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Run foreign code: whatever it raises becomes `failure("Kind: first line of its text")`.

    Errors of the types in `passing` are raised as they are.
    """
    try:
        yield
    except passing:
        raise
    except _FAILURES as error:
        raise failure(f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The first line of an error's text, also of one whose own `__str__` fails."""
    text = str(traceback.TracebackException(type(error), error, None))
    return (text.splitlines() or [""])[0]
