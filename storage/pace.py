"""Background threads that take a share of a core only, while somebody else needs all cores.

A low priority would do as much, were it not for locks: who is scheduled once in a while holds them
for as long, the interpreter's among them. So a thread works at full speed in pieces of a
millisecond or two, calls `rest` after each, and sleeps there for the rest of its share.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

_LONGEST_S = 0.5  # that one rest takes
_LOOK_S = 0.02  # between two looks whether it is still needed

_threads = threading.local()


class Pace:
    """share: of a core, for each thread that keeps it. is_needed: told from those threads."""

    def __init__(self, share: float, is_needed: Callable[[], bool]) -> None:
        assert 0.0 < share < 1.0
        self._share = share
        self.is_needed = is_needed

    def keep(self) -> None:
        """From now on, `rest` on this thread rests at this pace."""
        _threads.pace = self
        _threads.worked_s = time.thread_time()

    def keep_in_tasks(self) -> None:
        """From now on, `rest_in_task` rests at this pace in the event loop of this thread."""
        _threads.task_pace = self
        _threads.worked_s = time.thread_time()

    def rest(self) -> None:
        end_s = self._end_s()
        while (left_s := end_s - time.monotonic()) > 0.0 and self.is_needed():
            time.sleep(min(left_s, _LOOK_S))
        _threads.worked_s = time.thread_time()

    async def rest_in_task(self) -> None:
        end_s = self._end_s()
        while (left_s := end_s - time.monotonic()) > 0.0 and self.is_needed():
            await asyncio.sleep(min(left_s, _LOOK_S))

    def _end_s(self) -> float:
        now_s = time.thread_time()
        worked_s, _threads.worked_s = now_s - _threads.worked_s, now_s
        return time.monotonic() + min(worked_s * (1.0 / self._share - 1.0), _LONGEST_S)


def rest() -> None:
    """Between two pieces of work; at once on threads that keep no pace."""
    pace: Pace | None = getattr(_threads, "pace", None)
    if pace is not None:
        pace.rest()


async def rest_in_task() -> None:
    """As `rest`, in a task: what all tasks of its event loop worked counts, once."""
    pace: Pace | None = getattr(_threads, "task_pace", None)
    if pace is not None:
        await pace.rest_in_task()
