"""The moments after the control plane's Redis was away."""

from __future__ import annotations

import math

from chorale.errors import ChoraleError

_REJOINED_S = 5.0  # several heartbeats
_PAUSE_S = 0.25


class Outage:
    """Leases lapse while Redis stands still: back again, it knows no data plane until each has
    joined with its next heartbeat. One gateway's, which has seen the outage if it asked then."""

    def __init__(self) -> None:
        self._seen_s = -math.inf

    def pause_s(self, error: ChoraleError, now_s: float) -> float | None:
        """After which what an admission failed with may have passed; None when it need not. Not
        for longer than data planes take to join."""
        if error.reason == "STORE_UNAVAILABLE":
            self._seen_s = now_s
        waits = error.reason == "NO_DATA_PLANE" and now_s - self._seen_s < _REJOINED_S
        return _PAUSE_S if waits else None
