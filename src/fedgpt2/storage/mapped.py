"""Buffers mapped from files: memory that the system can write to a disk and reuse, however many there are.

The pages of such a buffer are file-backed. Under memory pressure the kernel writes them out; anonymous memory it could
only swap. On a memory-backed file system (tmpfs) they are memory all the same: `memory_backed` tells.
"""

import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from fedgpt2.storage.files import disk_errors

__all__ = ["BufferPool", "MemoryPool", "memory_backed"]

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: map all pages for writing now
_MEMORY_BACKED = frozenset({"tmpfs", "ramfs"})
_MOUNTS = Path("/proc/self/mountinfo")
_ZEROS = bytes(1 << 20)


class BufferPool:
    """Buffers in one folder, one for each owner, kept and leased again.

    Their files have no name, so nothing remains in the folder when the process ends, by whatever signal.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is created with the first lease."""
        self._folder = folder
        self._buffers: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()

    def lease(self, owner: str, size: int) -> memoryview:
        """The buffer of `owner`, `size` bytes to write to; what it holds is what the last lease left there.

        A larger size than before gets a new file; views of the old one stay valid. All pages are mapped for writing
        when this returns, so that who fills them does not wait for a disk; this call may, so keep it off the event
        loop. Raises DiskFullError (the space is reserved: a full disk is no SIGBUS later) and RunDirectoryError.
        """
        with self._lock:
            buffer = self._buffers.get(owner)
            if buffer is None or len(buffer) < size:
                self._buffers.pop(owner, None)
                buffer = self._buffers[owner] = self._create(size)
        _populate(buffer)
        return memoryview(buffer)[:size]

    def close(self) -> None:
        """Drop all buffers; each is freed when the last view of it is gone."""
        with self._lock:
            self._buffers.clear()

    def _create(self, size: int) -> mmap.mmap:
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                _reserve(file.fileno(), size)
                return mmap.mmap(file.fileno(), size)


class MemoryPool:
    """As BufferPool, in anonymous memory: for simulations and benches."""

    def __init__(self) -> None:
        self._buffers: dict[str, mmap.mmap] = {}

    def lease(self, owner: str, size: int) -> memoryview:
        """The buffer of `owner`, `size` bytes to write to."""
        buffer = self._buffers.get(owner)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[owner] = mmap.mmap(-1, size)
        return memoryview(buffer)[:size]


def memory_backed(folder: Path) -> bool:
    """Whether files in `folder` are kept in memory; False where the system does not say."""
    while not folder.exists():
        folder = folder.parent
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = _MOUNTS.read_text().splitlines()
    except OSError:
        return False
    fields = (line.split() for line in mounts)  # id, parent, device, …, "-", file system, …
    return any(parts[2] == name and parts[parts.index("-") + 1] in _MEMORY_BACKED for parts in fields)


def _reserve(descriptor: int, size: int) -> None:
    """Make the file `size` bytes long, with all of its space reserved on the disk. Raises OSError."""
    allocate: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        allocate(descriptor, 0, size)
        return
    for start in range(0, size, len(_ZEROS)):  # macOS
        os.pwrite(descriptor, _ZEROS[: size - start], start)


def _populate(buffer: mmap.mmap) -> None:
    """Map every page for writing, where the system can be asked to (Linux)."""
    try:
        buffer.madvise(_POPULATE_WRITE)
    except (AttributeError, OSError):  # an older kernel, another system: pages are mapped as they are written
        return
