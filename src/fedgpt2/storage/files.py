"""Writing files so that a power cut leaves either the old or the new one, and a full disk is one clear line."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fedgpt2.errors import DiskFullError, RunDirectoryError

__all__ = ["append_line", "disk_errors", "fsync_folder", "replace_durably", "write_durably", "write_parts"]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into DiskFullError and any other OSError into RunDirectoryError, each naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left to write {path}; free some and start again, all up to the last round is safe"
            ) from error
        raise RunDirectoryError(f"cannot use {path}: {error.strerror or error}") from error


def write_parts(path: Path, parts: Iterable[bytes | memoryview], mode: int = 0o666) -> None:
    """Write the parts to `path` and wait until they are on the disk; a new file is open to no more than `mode` says."""
    with open(path, "wb", buffering=0, opener=partial(os.open, mode=mode)) as file:
        for part in parts:
            view = memoryview(part)
            while view.nbytes:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` in one step."""
    replace_durably(path, [data], mode)


def replace_durably(path: Path, parts: Iterable[bytes | memoryview], mode: int = 0o644) -> None:
    """Replace `path` by the parts in one step: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        write_parts(temporary, parts, mode)
        temporary.chmod(mode)
        temporary.replace(path)
        fsync_folder(path.parent)


def append_line(path: Path, line: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Add all of a line to `path`, or none of it; on disk when this returns, if `durable`. Raises OSError.

    A disk that is nearly full takes half a line without a word, and the next one would be glued to it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, "no space for a whole line")
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
