"""What a container's limits leave, read from files as the kernel writes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from storage.machine import memory_bytes, num_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_2(root: Path, *, group: str, top: str, files: dict[str, str]) -> Path:
    mount = f"31 23 0:28 {top} /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n"
    own = {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": mount}
    return machine(root, own | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def version_1(root: Path, *, group: str, top: str, files: dict[str, str]) -> Path:
    mounts = "".join(
        f"{30 + at} 23 0:{at} {top} /sys/fs/cgroup/{name} ro - cgroup cgroup rw,{name}\n"
        for at, name in enumerate(("cpu,cpuacct", "memory", "cpuset"))
    )
    lines = f"3:cpuset:/\n2:memory:{group}\n1:cpu,cpuacct:{group}\n0::{group}\n"
    own = {"proc/self/cgroup": lines, "proc/self/mountinfo": mounts}
    return machine(root, own | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})


def test_a_container_of_version_2(tmp_path: Path) -> None:
    files = {"cpu.max": "250000 100000\n", "memory.max": f"{GIB}\n"}
    root = version_2(tmp_path, group="/", top="/", files=files)
    assert (num_cores(root), memory_bytes(root)) == (2, GIB)


def test_a_container_of_version_1_that_sees_its_hosts_paths(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "350000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{GIB}\n",
    }
    root = version_1(tmp_path, group="/docker/5fad", top="/docker/5fad", files=files)
    assert (num_cores(root), memory_bytes(root)) == (3, GIB)


@pytest.mark.parametrize("tight", ["pod.slice", "pod.slice/one.scope"])
def test_the_tightest_of_the_groups_above_counts(tmp_path: Path, tight: str) -> None:
    files = {
        f"{folder}/{name}": text
        for folder in ("pod.slice", "pod.slice/one.scope")
        for name, text in (("cpu.max", "max 100000\n"), ("memory.max", "max\n"))
    }
    files |= {f"{tight}/cpu.max": "400000 100000\n", f"{tight}/memory.max": f"{GIB}\n"}
    root = version_2(tmp_path, group="/pod.slice/one.scope", top="/", files=files)
    assert (num_cores(root), memory_bytes(root)) == (4, GIB)


def test_less_than_a_core_is_one_thread(tmp_path: Path) -> None:
    root = version_2(tmp_path, group="/", top="/", files={"cpu.max": "50000 100000\n"})
    assert num_cores(root) == 1


@pytest.mark.parametrize(
    ("quota", "memory"), [("max 100000\n", "max\n"), ("gone\n", "\n"), ("5\n", "-\n"), ("0 0", "x")]
)
def test_no_limit_and_files_nobody_understands_leave_the_machine(
    tmp_path: Path, quota: str, memory: str
) -> None:
    files = {"cpu.max": quota, "memory.max": memory}
    root = version_2(tmp_path, group="/../..", top="/", files=files)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (num_cores(root), memory_bytes(root)) == (8, whole)


def test_no_quota_of_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = version_1(tmp_path, group="/", top="/", files=files)
    assert num_cores(root) == 8 and (memory_bytes(root) or 0) < 1 << 50


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert num_cores(tmp_path) == 8
