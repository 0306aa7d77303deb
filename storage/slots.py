"""A semaphore whose waiters are served by priority."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable


class PrioritySlots:
    """At most `count` holders at a time; of those who wait, the highest priority is next, then who
    came first. Use from one event loop."""

    def __init__(self, count: int) -> None:
        assert count > 0
        self._free = count
        self._waiting: dict[asyncio.Future[None], Callable[[], float]] = {}

    @contextlib.asynccontextmanager
    async def at(self, priority: Callable[[], float]) -> AsyncGenerator[None]:
        """Holds a slot. priority: looked at when one becomes free, so it may change meanwhile."""
        await self._acquire(priority)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, priority: Callable[[], float]) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = priority
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            if not turn.cancelled():
                self._release()  # it was given the slot in the same moment
            raise

    def _release(self) -> None:
        while self._waiting:
            turn = max(self._waiting, key=lambda each: self._waiting[each]())
            del self._waiting[turn]
            if not turn.cancelled():
                turn.set_result(None)  # the slot changes hands
                return
        self._free += 1
