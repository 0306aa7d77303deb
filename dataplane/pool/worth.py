"""What an unused thing in the pool is worth: one scale for cached blocks and idle adapters.

    worth = (seconds to get it back) x (chance of use) / pages

The chance of use is an exponentially decayed count of uses. All counts decay at one rate, so the
order of two things changes only when one of them is used: worth can be compared by its logarithm as
of time zero, and a heap of such keys needs no refreshing as time goes by.
"""

from __future__ import annotations

import math

HALF_LIFE_S = 120.0
"""A use counts half after so long."""

_DECAY_PER_S = math.log(2) / HALF_LIFE_S
_NEVER = -math.inf


class UseCount:
    """A decayed count of uses. `log` is its logarithm as if all uses were at time zero."""

    __slots__ = ("log",)

    def __init__(self) -> None:
        self.log = _NEVER

    def add(self, now_s: float, weight: float = 1.0) -> None:
        """Counts a use. weight: below 1 for a use that is only likely."""
        use = math.log(weight) + _DECAY_PER_S * now_s
        high, low = max(self.log, use), min(self.log, use)
        self.log = high + math.log1p(math.exp(low - high))

    def at(self, now_s: float) -> float:
        """The count, decayed to `now_s`."""
        return math.exp(self.log - _DECAY_PER_S * now_s)


def worth_key(cost_s: float, uses: UseCount, num_pages: int) -> float:
    """Orders things by worth. cost_s: seconds of reload or recompute when it is needed again."""
    return math.log(max(cost_s, 1e-9) / num_pages) + uses.log
