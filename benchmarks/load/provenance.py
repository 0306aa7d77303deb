"""Where and by what a figure was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


def provenance() -> dict[str, object]:
    """Commit, machine and time, for every report."""
    return {
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "num_cores": os.cpu_count() or 0,
    }


def commit() -> str:
    """Of the source tree, "+" behind it when files differ from it; "unknown" outside of one."""
    found = _git("rev-parse", "--short=12", "HEAD")
    if not found:
        return "unknown"
    return f"{found}+" if _git("status", "--porcelain", "--untracked-files=no") else found


def processor() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


class ProcessorTime(NamedTuple):
    """Ticks of all cores. stolen: those in which the host ran somebody else on them."""

    total: int
    stolen: int

    def __sub__(self, before: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(self.total - before.total, self.stolen - before.stolen)

    @property
    def stolen_share(self) -> float:
        return self.stolen / self.total if self.total else 0.0


def processor_time() -> ProcessorTime:
    """Since the machine started; zeros where the system does not tell."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return ProcessorTime(0, 0)
    # user nice system idle iowait irq softirq steal; what follows is part of user and nice.
    ticks = [int(each) for each in line.split()[1:9]]
    return ProcessorTime(sum(ticks), ticks[7])


def _git(*arguments: str) -> str:
    if not (ROOT / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()
