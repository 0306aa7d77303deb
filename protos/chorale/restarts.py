"""When a process that was lost is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RestartPolicy:
    """Waits longer after each quick failure, and gives up after too many in a row.

    A failure is quick when the process lived for less than `quick_s`; a longer life clears the
    count. Delays in seconds.
    """

    quick_s: float
    first_delay_s: float
    max_quick_failures: int = 5
    longest_delay_s: float = 5.0
    num_quick_failures: int = 0

    def after_end(self, lived_s: float) -> float | None:
        """Seconds to wait before the next start; None to give up. lived_s: 0 when it could not
        even start."""
        if lived_s >= self.quick_s:
            self.num_quick_failures = 0
            return self.first_delay_s
        self.num_quick_failures += 1
        if self.num_quick_failures >= self.max_quick_failures:
            return None
        return min(self.longest_delay_s, self.first_delay_s * 2.0**self.num_quick_failures)
