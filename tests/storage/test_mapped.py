"""Mapped buffers: one an owner, kept, file-backed, nothing left behind, a full disk is an error and not a signal."""

import errno
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fedgpt2.errors import DiskFullError, RunDirectoryError
from fedgpt2.storage import mapped
from fedgpt2.storage.mapped import BufferPool, memory_backed

SIZE = 8 << 20


def resident(kind: str) -> int:
    """Bytes of this process: RssAnon, RssFile or RssShmem."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{kind}:"))
    return int(value) << 10


def test_an_owner_has_one_buffer_and_keeps_its_contents(tmp_path):
    pool = BufferPool(tmp_path / "made" / "later")
    buffer = pool.lease("a", 1000)
    assert (buffer.nbytes, buffer.readonly) == (1000, False)
    buffer[:3] = b"abc"
    pool.lease("b", 1000)[:3] = b"xyz"
    assert bytes(pool.lease("a", 1000)[:3]) == b"abc"
    assert pool.lease("a", 10).nbytes == 10
    assert bytes(pool.lease("a", 10)[:3]) == b"abc"


def test_a_larger_lease_gets_a_new_buffer_and_the_old_one_stays_valid(tmp_path):
    pool = BufferPool(tmp_path)
    old = pool.lease("a", 10)
    old[:] = b"0123456789"
    new = pool.lease("a", 11)
    new[:] = bytes(11)
    assert bytes(old) == b"0123456789"
    pool.close()
    assert bytes(old) == b"0123456789"


def test_nothing_is_left_in_the_folder_even_while_in_use(tmp_path):
    pool = BufferPool(tmp_path)
    pool.lease("a", SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_space_is_given_back(tmp_path):
    def held() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    pool = BufferPool(tmp_path)
    view = pool.lease("a", SIZE)
    pool.lease("b", SIZE)
    assert held() == 2
    pool.close()
    assert held() == 1
    del view
    assert held() == 0


@pytest.mark.skipif(memory_backed(Path.cwd()), reason="the checkout is kept in memory")
def test_pages_are_file_backed_and_mapped_when_leased():
    pool = BufferPool(Path.cwd() / "runs")
    before = resident("RssAnon"), resident("RssFile")
    tensor = torch.frombuffer(pool.lease("a", SIZE), dtype=torch.float32)
    assert resident("RssFile") - before[1] > SIZE // 2
    tensor.fill_(1.0)
    assert resident("RssAnon") - before[0] < SIZE // 4
    assert float(tensor.sum()) == SIZE // 4


def test_threads_lease_at_the_same_time(tmp_path):
    pool = BufferPool(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        buffers = list(threads.map(lambda i: pool.lease(str(i % 4), 4096), range(64)))
    for i in range(4):
        buffers[i][:1] = bytes([i])
    assert [bytes(buffer[:1])[0] for buffer in buffers] == [i % 4 for i in range(64)]


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, RunDirectoryError)]
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, number, error):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    pool = BufferPool(tmp_path / "contributions")
    with pytest.raises(error, match="contributions"):
        pool.lease("a", SIZE)
    monkeypatch.undo()
    assert pool.lease("a", 10).nbytes == 10


def test_a_limit_on_file_sizes_is_one_line(tmp_path):
    script = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from fedgpt2.errors import RunDirectoryError\n"
        "from fedgpt2.storage.mapped import BufferPool\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        f"    BufferPool(Path({str(tmp_path)!r})).lease('a', {SIZE})\n"
        "except RunDirectoryError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot use {tmp_path}: File too large\n"


def test_without_fallocate_space_is_written(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(mapped, "_ZEROS", bytes(4096))
    buffer = BufferPool(tmp_path).lease("a", 10_000)
    assert bytes(buffer) == bytes(10_000)


def test_an_older_kernel_maps_pages_as_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_POPULATE_WRITE", 9999)
    assert bytes(BufferPool(tmp_path).lease("a", 10)) == bytes(10)


def test_a_memory_backed_folder_is_told(tmp_path, monkeypatch):
    if Path("/dev/shm").is_dir():  # noqa: S108
        assert memory_backed(Path("/dev/shm/not/there/yet"))  # noqa: S108
    assert not memory_backed(Path("/proc"))
    monkeypatch.setattr(mapped, "_MOUNTS", tmp_path / "none")
    assert not memory_backed(Path("/dev/shm"))  # noqa: S108
