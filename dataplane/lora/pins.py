"""Pinned adapters that are not where they should be yet, and when each is tried again.

Room is looked for once a second, by the pool's books alone; a load is begun only when it is there.
What could not be loaded, or what host memory did not take, costs a load to try: there the pauses
double, up to five minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataplane.channel import Adapter

POOL_FULL = "PIN_POOL_FULL"
HOST_FULL = "PIN_HOST_FULL"
QUEUE_FULL = "PIN_QUEUE_FULL"

_LOOK_S = 1.0
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 300.0


@dataclass(slots=True)
class Waiting:
    """num_pages: that must be had in the pool; 0: not known, or not the pool's. reason: POOL_FULL,
    HOST_FULL, QUEUE_FULL, or that of the error of its load."""

    adapter: Adapter
    tier: Literal["host", "pool"]
    reason: str
    num_pages: int
    pause_s: float
    next_s: float


class WaitingPins:
    """The clock is the caller's, in seconds."""

    def __init__(self) -> None:
        self._pins: dict[str, Waiting] = {}
        self._next_s = 0.0  # before that none is due

    def __len__(self) -> int:
        return len(self._pins)

    def all(self) -> list[Waiting]:
        """In the order in which they began to wait."""
        return list(self._pins.values())

    def wait(
        self,
        adapter: Adapter,
        tier: Literal["host", "pool"],
        reason: str,
        now_s: float,
        num_pages: int = 0,
    ) -> None:
        """It is not there: try it again later, later each time unless pages are all that it needs
        and those can be counted."""
        before = self._pins.get(adapter.digest)
        pause_s = _LOOK_S if reason == POOL_FULL else _FIRST_PAUSE_S
        if before is not None and before.reason == reason:
            pause_s = min(before.pause_s * 2, _LONGEST_PAUSE_S)
        self._pins[adapter.digest] = Waiting(
            adapter, tier, reason, num_pages, pause_s, now_s + pause_s
        )
        self._next_s = min(self._next_s, now_s + pause_s)

    def drop(self, digest: str) -> None:
        """It is there, or no longer wanted."""
        self._pins.pop(digest, None)

    def due(self, now_s: float) -> list[Waiting]:
        """Those to look at now; each is looked at again no sooner than a second later."""
        if now_s < self._next_s:
            return []
        due = [each for each in self._pins.values() if each.next_s <= now_s]
        for each in due:
            each.next_s = now_s + _LOOK_S
        self._next_s = min((each.next_s for each in self._pins.values()), default=0.0)
        return due

    def tried(self, digest: str, now_s: float) -> None:
        """A load has begun for it; what comes of it is told by `wait` or `drop`."""
        pin = self._pins[digest]
        pin.next_s = now_s + _LONGEST_PAUSE_S
