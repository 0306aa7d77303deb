"""The time of another machine, as it was last told."""

from __future__ import annotations

import time
from collections.abc import Callable


class ToldClock:
    """Goes on by this machine's monotonic clock; until a time was told, it is this machine's own.

    Who signs tickets and who takes them have different clocks, and either may be set. So both go by
    the clock of the control planes' Redis, of which they hear every second.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._own = own
        self._ahead_s: float | None = None

    def told(self, now_s: float) -> None:
        """now_s: since the Unix epoch."""
        self._ahead_s = now_s - self._clock()

    def now_s(self) -> float:
        if self._ahead_s is None:
            return self._own()
        return self._clock() + self._ahead_s
