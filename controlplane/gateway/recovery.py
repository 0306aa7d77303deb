"""When a generation whose data plane is gone tries again, and when it gives up."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MAX_EXCLUDED = 64
"""As AdmitRequest.excluded_data_plane_ids allows."""


@dataclass(frozen=True, slots=True)
class RecoveryLimits:
    """Bounds on recovery; delays in seconds.

    max_lost_streams: streams that may break after `accepted`, in all. A request that kills its
    data planes must not go through the whole fleet.
    max_failures: failures to get a stream accepted, in a row. With the delays below it spans the
    time that a data plane takes to restart.
    admit_s: how long a control plane may take to find a place, Redis' timeouts included; one that
    takes longer hangs. source_check_s: how much longer where it asks a private source first.
    outage_s: how long it, or its Redis, may be away before requests no longer wait for it.
    """

    max_lost_streams: int = 3
    max_failures: int = 12
    first_delay_s: float = 0.1
    longest_delay_s: float = 2.0
    admit_s: float = 6.0
    source_check_s: float = 10.0
    outage_s: float = 5.0


@dataclass(slots=True)
class Recovery:
    """One request's recovery so far."""

    limits: RecoveryLimits
    excluded: deque[str] = field(default_factory=lambda: deque[str](maxlen=MAX_EXCLUDED))
    _num_lost_streams: int = 0
    _num_failures: int = 0
    _ticket_was_renewed: bool = False
    _under_way: bool = False

    @property
    def under_way(self) -> bool:
        """Whether a stream was lost and none has been accepted since."""
        return self._under_way

    def accepted(self) -> None:
        """A stream was accepted."""
        self._num_failures = 0
        self._ticket_was_renewed = False
        self._under_way = False

    def lost(self, data_plane_id: str, *, was_accepted: bool) -> bool:
        """A stream broke. Returns whether to go on, at once, elsewhere."""
        self._under_way = True
        if data_plane_id not in self.excluded:
            self.excluded.append(data_plane_id)
        if was_accepted:
            self._num_lost_streams += 1
            return self._num_lost_streams <= self.limits.max_lost_streams
        self._num_failures += 1
        return self._num_failures <= self.limits.max_failures

    def ticket_refused(self) -> bool:
        """A data plane refused a fresh ticket. Returns whether to ask for another:
        once until a stream is accepted."""
        first = not self._ticket_was_renewed
        self._ticket_was_renewed = True
        return first

    def no_place(self, retry_after_s: float | None) -> float | None:
        """No data plane takes the request now. Returns the delay before asking again, or None.

        What was excluded may be asked again: it may have restarted, and it is better than nothing.
        """
        self.excluded.clear()
        self._num_failures += 1
        if self._num_failures > self.limits.max_failures:
            return None
        grown = self.limits.first_delay_s * 2.0**self._num_failures
        return min(self.limits.longest_delay_s, max(grown, retry_after_s or 0.0))
