"""Files that a glob names, in an order and under names that do not depend on the machine."""

import glob
from pathlib import Path

from fedgpt2.config import path_of
from fedgpt2.errors import CorpusError

__all__ = ["matches", "portable"]


def matches(label: str, pattern: str) -> tuple[Path, list[Path]]:
    """The folder that is the fixed part of the glob, and the files it names, in path order (by code point).

    Raises CorpusError, beginning with `label`, where there is none.
    """
    full = path_of("--data.source", pattern)
    if not full.name:
        raise CorpusError(f"{label}: names no file")
    fixed = [part for part in _until_magic(full.parts) if part]
    root = Path(*fixed) if fixed else Path()
    found = {Path(name) for name in glob.glob(str(full), recursive=True)}  # `**/**` finds a file more than once
    paths = sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(root).as_posix())
    if not paths:
        hint = f", but a folder; {label.rstrip('/')}/* names the files in it" if full.is_dir() else ""
        raise CorpusError(f"{label}: names no file{hint}")
    return root, paths


def portable(root: Path, path: Path) -> str:
    """The path below `root`, with forward slashes. Raises CorpusError for a name that is not UTF-8."""
    relative = path.relative_to(root).as_posix()
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CorpusError(f"{path!a}: its name is not UTF-8") from error
    return relative


def _until_magic(parts: tuple[str, ...]) -> list[str]:
    """The leading path components without a wildcard, the last component never among them."""
    fixed: list[str] = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed
