"""What both ends of RelayService hold to."""

from __future__ import annotations

MAX_EVENTS_UNDER_WAY = 64
"""Of one generation, that were sent and not taken."""

MAX_REQUEST_BYTES = 1 << 20
"""A longer request gets a Generate call of its own, and holds up no other's start."""

NUM_TAKEN_STEP = MAX_EVENTS_UNDER_WAY // 2
"""After so many events the reader says that it has taken them."""
