"""An event loop whose clock stands still while something runs, and jumps to the next timer when
nothing does: what happens when is the same on every machine, and nobody waits."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualClock:
    """now_s: moved by the loop, and by tests that let time pass while they block."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class _Selector(selectors.SelectSelector):
    """Does not wait for a timer, but lets its time have come."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing is left that could go on"
        self._clock.now_s += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Selector(clock))
        self.time = clock  # pyright: ignore[reportAttributeAccessIssue]
        self._clock_resolution = 1e-9


def run(clock: VirtualClock, coroutine: Coroutine[Any, Any, T]) -> T:
    """For what has no sockets, threads or processes: nothing but timers is waited for."""
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(coroutine)
