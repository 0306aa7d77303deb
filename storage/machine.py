"""What this process may use of the machine: processors and memory, after what a container is held
to. The kernel keeps those bounds in control groups (cgroups, version 1 or 2)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def num_cores(root: Path = _ROOT) -> int:
    """At least 1. Part of a core does not count: threads that have to wait for processor time
    that the kernel refuses hold up all others of a step."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    quotas = [int(quota) for quota in _quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def memory_bytes(root: Path = _ROOT) -> int | None:
    """None where nobody tells."""
    bounds: list[int] = []
    with contextlib.suppress(ValueError, OSError, AttributeError):
        bounds.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for group in _groups("", root):
        bounds += _numbers(group / "memory.max")
    for group in _groups("memory", root):
        bounds += _numbers(group / "memory.limit_in_bytes")
    return min(bounds, default=None)


def _quotas(root: Path) -> Iterator[float]:
    """In cores."""
    for group in _groups("", root):
        yield from _cores(_numbers(group / "cpu.max"))
    for group in _groups("cpu", root):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        yield from _cores([number for file in files for number in _numbers(group / file)])


def _cores(quota_and_period: list[int]) -> list[float]:
    if len(quota_and_period) != 2 or min(quota_and_period) <= 0:  # -1: no quota
        return []
    return [quota_and_period[0] / quota_and_period[1]]


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's group and of those above it, as far as they are to be seen.
    controller: of version 1; "" is version 2."""
    path = _own_group(controller, root)
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount, system = before.split(), after.split()
        if len(mount) < 5 or len(system) < 3:
            continue
        kind, options = system[0], system[2].split(",")
        if kind == "cgroup2" if not controller else (kind == "cgroup" and controller in options):
            # A container sees its own group as the top, or its host's path to it.
            top, mounted = mount[3], root / mount[4].lstrip("/")
            below = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
            if ".." in below.parts:
                below = PurePosixPath()
            yield from (mounted / each for each in (below, *below.parents))
            return


def _own_group(controller: str, root: Path) -> PurePosixPath:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            return PurePosixPath(path)
    return PurePosixPath("/")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _numbers(file: Path) -> list[int]:
    """ "max" is a number that bounds nothing."""
    words = " ".join(_lines(file)).split()
    try:
        return [sys.maxsize if word == "max" else int(word) for word in words]
    except ValueError:
        return []
