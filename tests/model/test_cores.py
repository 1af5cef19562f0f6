"""How many cores a process may use: what a container's quota leaves of them."""

import os

import pytest

from fedgpt2.model import cores
from fedgpt2.model.cores import usable_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """`machine(groups, {file: text})`: eight cores, /proc/self/cgroup and files below /sys/fs/cgroup."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "_MOUNT", tmp_path / "mount")

    def build(groups, files):
        (tmp_path / "cgroup").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "mount" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return build


def v1(folder, quota):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # in a container, whose group is the root
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "of another kind\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # of a group around it
        ("0::/docker/c0ffee\n", {"cpu.max": "400000 100000\n"}, 4),  # a container that is told the host's name of it
        ("4:cpu,cpuacct:/a\n0::/\n", v1("cpu/a", 250000), 3),
        ("4:cpuacct,cpu:/a\n0::/\n", v1("cpu/a", -1) | v1("cpu", 500000), 5),
        ("no group\n0::/\n", {"cpu.max": "100000 0\n"}, 8),
        ("0::/\n", {"cpu.max": "-1 100000\n"}, 8),
        ("4:cpuset:/a\n", v1("cpuset/a", 100000), 8),  # limits no time
        ("", {}, 8),
    ],
)
def test_a_quota_of_cpu_time_is_so_many_cores(machine, groups, files, cores):
    machine(groups, files)
    assert usable_cores() == cores


def test_where_there_are_no_groups_it_is_the_affinity(machine, monkeypatch):
    assert usable_cores() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()
