"""Filling several masks at once, where there are cores for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from storage.machine import num_cores

_MOST = 8


def num_threads() -> int:
    """The caller's included. Half of the cores, as on a CPU the forward pass runs meanwhile."""
    return min(_MOST, num_cores() // 2)


class MaskThreads:
    """llguidance lets other threads run while it fills a mask. Not thread-safe itself."""

    def __init__(self) -> None:
        self._num_threads = num_threads()
        self._pool: ThreadPoolExecutor | None = None  # until there is something for it

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Each once, on any thread, until all are done; none may raise."""
        left = deque(jobs)
        num_beside = min(self._num_threads, len(left)) - 1
        if num_beside > 0 and self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads - 1, "masks")
        beside = [self._pool.submit(_drain, left) for _ in range(num_beside)] if self._pool else []
        _drain(left)
        for each in beside:
            each.result()

    def close(self) -> None:
        """Idempotent."""
        if self._pool is not None:
            self._pool.shutdown()


def _drain(jobs: deque[Callable[[], None]]) -> None:
    while True:
        try:
            job = jobs.popleft()
        except IndexError:
            return
        job()
