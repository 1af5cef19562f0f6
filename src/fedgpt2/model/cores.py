"""How many cores this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["usable_cores"]

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Those of its affinity, or fewer where a container has less CPU time than they: more threads only wait.

    A quota of one core and a half is two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups() for quota in _quota(folder)]
    return max(1, min(cores, math.ceil(min(quotas, default=cores))))


def _groups() -> Iterator[Path]:
    """Folders of the control groups around this process that may limit its CPU time, of both versions.

    Inside a container its own group is the root of the mount, whatever else it is called.
    """
    text = ""
    with suppress(OSError):  # not Linux
        text = _GROUPS.read_text(errors="replace")
    for controllers, path in (line.split(":", 2)[1:] for line in text.splitlines() if line.count(":") > 1):
        if not controllers or "cpu" in controllers.split(","):
            root = _MOUNT / ("cpu" if controllers else "")  # also where version 1 mounts it with another controller
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _quota(folder: Path) -> Iterator[float]:
    """Cores' worth of CPU time that a group may have, if it has a limit."""
    texts = []
    with suppress(OSError, UnicodeDecodeError):  # version 2: "150000 100000", or "max 100000"
        texts += [(folder / "cpu.max").read_text().split()]
    with suppress(OSError, UnicodeDecodeError):  # version 1: -1 for none
        texts += [[(folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]]
    for text in texts:
        with suppress(ValueError, ZeroDivisionError):
            quota, period = map(int, text)
            yield from [quota / period] if quota > 0 else []
