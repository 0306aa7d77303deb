"""How long first tokens take on one part of a request's way, measured."""

from __future__ import annotations

import math

_HALF_LIFE_S = 2.0
_PRIOR_WEIGHT = 0.5  # of no time at all, beside measurements that weigh 1 when they are made


class PathTime:
    """A mean of what was measured lately, and the deviation from it.

    What is old weighs less and less beside a prior of 0: an estimate by which everybody is refused
    would never be measured again, so it is forgotten.
    """

    def __init__(self) -> None:
        self._weight = self._sum = self._squares = 0.0
        self._noted_s = -math.inf

    def note(self, took_s: float, now_s: float) -> None:
        """took_s: less than 0, of clocks that were read apart, counts as 0."""
        kept = self._kept(now_s)
        took_s = max(0.0, took_s)
        self._weight = kept * self._weight + 1.0
        self._sum = kept * self._sum + took_s
        self._squares = kept * self._squares + took_s * took_s
        self._noted_s = max(now_s, self._noted_s)

    def usual_s(self, now_s: float) -> float:
        """What most take at most: the mean and one deviation; 0 where nothing was measured."""
        if not self._weight:
            return 0.0
        mean_s = self._sum / self._weight
        variance = self._squares / self._weight - mean_s * mean_s
        weight = self._kept(now_s) * self._weight
        return (mean_s + math.sqrt(max(0.0, variance))) * weight / (weight + _PRIOR_WEIGHT)

    def _kept(self, now_s: float) -> float:
        """Of what was noted before."""
        if self._noted_s == -math.inf:
            return 0.0
        return 0.5 ** (max(0.0, now_s - self._noted_s) / _HALF_LIFE_S)
