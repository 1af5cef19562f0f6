"""The machine: which device, how many threads, and two CPU settings worth 1.5x and 2x.

Measured on 2 cores AMD EPYC (avx512_bf16, no AMX), torch 2.13, gradient of 124M over 2,048 tokens
(docs of the numbers: benchmarks/, recipe: `fedgpt2 bench compute`):

- `keep_freed_memory`: glibc hands every freed block over 32 MB back to the kernel, and 0.8 million page
  faults a gradient then take a third of the time; keeping it is worth 1.3-1.5x. The MALLOC_* environment
  variables do this for the main thread only: a thread's own arena cannot hold blocks over 64 MB and maps
  each anew. mallopt with one arena for all threads serves the compute thread as well.
- `route_fp32`: MKL's fp32 matmul reaches half of what this CPU can; oneDNN's reaches nine tenths.

And one choice, `native_precision`. A CPU without bf16 instructions multiplies in bf16 all the same, at 2 GFLOP/s on an
AVX2 core that does 70 in fp32: a gradient of nano takes 12 (128 tokens) to 19 times (1,024) as long.
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

from fedgpt2.errors import DeviceError, UsageError
from fedgpt2.model.cores import usable_cores

__all__ = [
    "arithmetic",
    "keep_freed_memory",
    "native_precision",
    "physical_memory",
    "prepare",
    "resolve",
    "route_fp32",
    "set_threads",
]

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

# names of torch.cpu.get_capabilities: x86's two, ARM's two
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")

# memory limit of this process's control group: version 2, version 1
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def prepare(device: str, threads: int = 0) -> torch.device:
    """Resolve `device` and set this process up for it; call once, before other threads compute.

    `threads` of tensor arithmetic, 0 for one a core. Raises DeviceError or UsageError as `resolve` does, and
    DeviceError where numbers are not stored as they travel.
    """
    if sys.byteorder != "little":
        raise DeviceError("this machine is big-endian; weights and gradients travel and live in little-endian numbers")
    resolved = resolve(device)
    set_threads(threads)
    if resolved.type == "cpu":
        keep_freed_memory()
        route_fp32()
    return resolved


def resolve(device: str) -> torch.device:
    """The torch device that `--device` names: cpu, cuda or cuda:N.

    Raises UsageError for a name of another form, DeviceError when this machine has no such device; both
    are one line that names the way out.
    """
    kind, colon, index = device.partition(":")
    if device == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdigit())):
        raise UsageError(f"--device {device}: not a device; one of cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        seen = f"{count} CUDA device{'s'[: count != 1]}" if count else "no CUDA device"
        raise DeviceError(f"--device {device}: this machine has {seen}; use --device cpu")
    return torch.device("cuda", int(index or 0))


def set_threads(threads: int) -> int:
    """Threads of tensor arithmetic; 0 for one a core this process may use. Returns the number set."""
    torch.set_num_threads(threads or usable_cores())
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Make malloc keep freed blocks for the next use, in every thread; True when it did.

    Needs glibc (False elsewhere). One arena: no block is too large for it. No mmap: freed blocks return
    to it. No trim: it never shrinks, so the process stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all([libc.mallopt(parameter, value) == 1 for parameter, value in settings])


def route_fp32() -> bool:
    """Send fp32 matmuls through oneDNN where that costs no precision; True when it did.

    torch's only switch for the route allows bf16 inside. Without AMX oneDNN has no kernel for that and
    multiplies in fp32 (error 4e-7); where a trial product shows that it rounds, the switch goes back.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = switch.fp32_precision
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ a.double()
    switch.fp32_precision = "bf16"
    error = float(((a @ a).double() - exact).norm() / exact.norm())
    if error > 1e-5:  # bf16 would show 2e-3
        switch.fp32_precision = before
        return False
    return True


def physical_memory() -> int:
    """Bytes of memory of this machine or container; where the system does not say, more than any model needs."""
    limits = [path.read_text().strip() for path in _MEMORY_LIMITS if path.exists()]
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 1 << 62
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def native_precision(device: torch.device) -> str:
    """The faster of bf16 and fp32 on `device`: bf16 where it has instructions for it, and torch a library for them."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "fp32"
    has = torch.cpu.get_capabilities()
    return "bf16" if any(has.get(name, False) for name in _BF16_INSTRUCTIONS) else "fp32"


def arithmetic(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context a forward pass runs in: autocast to bf16, or plain fp32.

    Raises UsageError for a precision that is neither.
    """
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    if precision == "fp32":
        return contextlib.nullcontext()
    raise UsageError(f"--gradient.precision {precision}: one of auto, bf16, fp32")
