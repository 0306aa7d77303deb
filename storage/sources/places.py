"""Places for what takes memory and waits for strangers, so that few who wait hold up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from storage.errors import SourceUnavailableError

T = TypeVar("T")


class Places:
    """At most `num_quick` and `num_slow` holders. Whoever has waited for `patience_s` while others
    want a place goes on among the slow ones or, where these are full, is refused.

    Belongs to one event loop.
    """

    def __init__(self, num_quick: int, num_slow: int, patience_s: float) -> None:
        self.quick = asyncio.Semaphore(num_quick)
        self.slow = asyncio.Semaphore(num_slow)
        self.patience_s = patience_s
        self.num_wanted = 0

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[Place]:
        """Waits for a quick place, in the order of coming."""
        self.num_wanted += 1
        try:
            await self.quick.acquire()
        finally:
            self.num_wanted -= 1
        place = Place(self)
        try:
            yield place
        finally:
            place.lane.release()


class Place:
    """lane: where it is now."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.lane = places.quick

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises; it is cancelled when it has to make way.

        Raises: SourceUnavailableError.
        """
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=self._places.patience_s))[0]:
                await self._make_way()
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _make_way(self) -> None:
        quick, slow = self._places.quick, self._places.slow
        if self.lane is slow or not self._places.num_wanted:
            return
        if slow.locked():
            raise SourceUnavailableError(
                f"its parts did not come within {self._places.patience_s:g} s while others waited "
                "for their turn: try again when their sources answer"
            )
        await slow.acquire()  # at once
        self.lane = slow
        quick.release()
