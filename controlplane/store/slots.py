"""Who may ask Redis now, and who waits for a turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from controlplane.errors import StoreBusyError, StoreUnavailableError


class Slots:
    """At most `count` at once, the others in the order in which they came.

    Nobody waits longer for being one of many, as long as turns end: a burst is worked off, and each
    call's own deadline says how long that may take. When no turn has ended well for `patience_s`,
    those who have waited as long are told so.
    """

    def __init__(self, count: int, *, patience_s: float, max_waiting: int) -> None:
        self._num_free = count
        self._patience_s = patience_s
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._num_ended_well = 0

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Raises: StoreBusyError when too many wait; StoreUnavailableError."""
        if self._num_free:
            self._num_free -= 1
        else:
            await self._wait()
        try:
            yield
            self._num_ended_well += 1
        finally:
            self._pass_on()

    async def _wait(self) -> None:
        if len(self._waiting) >= self._max_waiting:
            raise StoreBusyError(self._max_waiting)
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            while not mine.done():
                before = self._num_ended_well
                await asyncio.wait((mine,), timeout=self._patience_s)
                if not mine.done() and self._num_ended_well == before:
                    raise StoreUnavailableError(f"no answer for {self._patience_s:g} s")
        except BaseException:
            if mine.done():
                self._pass_on()  # it came to be our turn in the same moment
            else:
                self._waiting.remove(mine)
            raise

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._num_free += 1
