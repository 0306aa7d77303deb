"""While the control plane or its Redis is away, and the moments after."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

from chorale.errors import ChoraleError

_REJOINED_S = 5.0  # several heartbeats
_SHORTEST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 2.0
_ASKED_PER_S = 400.0  # by all that wait: a gateway has other things to do
_AWAY = frozenset({"CONTROL_PLANE_UNREACHABLE", "STORE_UNAVAILABLE"})


class Outage:
    """What one gateway saw of it.

    A control plane that is replaced, or a Redis that starts again, is away for seconds: requests
    wait for it, until it has been away for `longest_s`. Leases lapse while Redis stands still: back
    again, it knows no data plane until each has joined with its next heartbeat.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._began_s: float | None = None
        self._seen_s = -math.inf
        self._num_waiting = 0

    def pause_s(self, error: ChoraleError, asked_s: float, now_s: float) -> float | None:
        """After which an admission, asked for at `asked_s`, that failed with `error` may pass; None
        when it need not."""
        if error.reason in _AWAY:
            if self._began_s is None:
                self._began_s = asked_s
            self._seen_s = now_s
            waits = now_s - self._began_s < self._longest_s
        else:
            self.over()
            waits = error.reason == "NO_DATA_PLANE" and now_s - self._seen_s < _REJOINED_S
        if not waits:
            return None
        return min(max(_SHORTEST_PAUSE_S, self._num_waiting / _ASKED_PER_S), _LONGEST_PAUSE_S)

    def over(self) -> None:
        """There was an answer."""
        self._began_s = None

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Around a pause."""
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1
