"""When a child that died is started again."""

from __future__ import annotations

QUICK_S = 10.0
MAX_QUICK_FAILURES = 5
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0


class RestartPolicy:
    """Waits longer after each quick failure, and gives up after too many in a row.

    A failure is quick when the child ran for less than `QUICK_S`; a longer life clears the count.
    """

    def __init__(self) -> None:
        self._quick_failures = 0

    def after_exit(self, ran_s: float) -> float | None:
        """Seconds to wait before the next start; None to give up."""
        if ran_s >= QUICK_S:
            self._quick_failures = 0
            return FIRST_DELAY_S
        self._quick_failures += 1
        if self._quick_failures >= MAX_QUICK_FAILURES:
            return None
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**self._quick_failures)
