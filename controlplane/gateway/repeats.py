"""What is said again and again, as by every request that waits for the same server."""

from __future__ import annotations

import logging

_INTERVAL_S = 10.0
_MAX_KEPT = 256


class Repeats:
    """Logs each message at once, and then once every ten seconds, with how often it was said
    meanwhile. For one thread."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: dict[str, tuple[float, int]] = {}  # when; how often it was not told since

    def tell(self, message: str, now: float) -> None:
        """now: seconds of a clock that never goes back."""
        when, silent = self._told.pop(message, (now - _INTERVAL_S, 0))
        if now - when < _INTERVAL_S:
            self._told[message] = when, silent + 1
            return
        if len(self._told) >= _MAX_KEPT:
            self._told.clear()
        self._told[message] = now, 0
        self._log.info("%s%s", message, f" (and {silent} times more before)" if silent else "")
