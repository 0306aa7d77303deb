"""Keeps one part running until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from chorale.restarts import RestartPolicy
from controlplane.cli.errors import PartFailedError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.supervisor.log_file import BoundedLog
from controlplane.cli.supervisor.process import Child, Part

Report = Callable[[str], None]
MAX_ERROR_LINES = 10
ERROR_WINDOW_S = 10.0
QUICK_S = 10.0
FIRST_DELAY_S = 0.2


class Keeper:
    """Runs a part again and again; `ready` is set while its process says that it is ready."""

    def __init__(
        self, part: Part, environment: Mapping[str, str], logs: Path, report: Report
    ) -> None:
        self.part = part
        self._environment = {**environment, **part.environment}
        self.ready = asyncio.Event()
        self.pid = 0  # of the present process; 0 between two
        self._log_path = logs / f"{part.name}.log"
        self._report = report
        self._policy = restart_policy()
        self._was_ever_ready = False
        self._stopping = asyncio.Event()
        self._child: Child | None = None
        self._echo = _Echo(part.name, self._log_path, report)

    async def run(self) -> None:
        """Raises: PartFailedError when the part keeps dying, or refuses its configuration; one that
        it has served with before is tried again, as what it misses may come back."""
        log = BoundedLog(self._log_path)
        try:
            while not self._stopping.is_set():
                delay_s = await self._run_once(log)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
        finally:
            log.close()

    async def _run_once(self, log: BoundedLog) -> float:
        """One life of the part; seconds to wait before the next one."""
        self._child = child = Child(
            self.part, self._environment, log, self.ready.set, self._echo.line
        )
        await child.start()
        self.pid = child.pid
        if self._stopping.is_set():  # told so while it was starting
            child.terminate()
        try:
            status = await child.wait()
        finally:
            child.kill()
            self._was_ever_ready |= self.ready.is_set()
            self.ready.clear()
            self._child, self.pid = None, 0
        if self._stopping.is_set():
            return 0.0
        # What has never served failed to start, however long it took: not to be tried for ever.
        ran_s = time.monotonic() - child.started_s if self._was_ever_ready else 0.0
        delay_s = self._policy.after_end(ran_s)
        if delay_s is None or (status == ExitCode.INVALID and not self._was_ever_ready):
            why = f"{ending(status)}" + (" again and again" if delay_s is None else "")
            raise PartFailedError(
                self.part.name, status, why, self._log_path, list(child.last_lines)
            )
        last = f" ({child.last_lines[-1][:300]})" if status and child.last_lines else ""
        self._report(
            f"{self.part.name} {ending(status)}{last}; starting it again in {delay_s:.1f} s"
        )
        return delay_s

    def stop(self) -> None:
        """Asks the process to end; `run` then returns."""
        self._stopping.set()
        if self._child is not None and self.pid:
            self._child.terminate()

    def kill(self) -> None:
        self._stopping.set()
        if self._child is not None and self.pid:
            self._child.kill()


class _Echo:
    """Shows a part's error lines as they come, but no flood of them."""

    def __init__(self, name: str, log_path: Path, report: Report) -> None:
        self._name = name
        self._log_path = log_path
        self._report = report
        self._window_started_s = 0.0
        self._num_lines = 0

    def line(self, text: str) -> None:
        now = time.monotonic()
        if now - self._window_started_s > ERROR_WINDOW_S:
            self._window_started_s, self._num_lines = now, 0
        self._num_lines += 1
        if self._num_lines <= MAX_ERROR_LINES:
            self._report(f"{self._name}: {text[:500]}")
        elif self._num_lines == MAX_ERROR_LINES + 1:
            self._report(f"{self._name}: more errors are in {self._log_path}")


def restart_policy() -> RestartPolicy:
    """Of one part."""
    return RestartPolicy(quick_s=QUICK_S, first_delay_s=FIRST_DELAY_S)


def ending(status: int) -> str:
    """How a process ended, for people; a negative status is the signal that ended it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
