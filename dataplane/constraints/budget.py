"""What following grammars may take of the step loop, for all requests together."""

from __future__ import annotations

from collections.abc import Collection

from dataplane.constraints.limits import BURST_CPU_S, MAX_COUNTED_CPU_S, SHARE


class MaskBudget:
    """Each step of a grammar may take `mask_cpu_s`. What takes longer is owed, and time makes up
    for SHARE of itself. Once BURST_CPU_S is owed, those leave that took the most, until it no
    longer is: so nobody leaves whose grammar is an ordinary one, whoever is beside it."""

    def __init__(self, mask_cpu_s: float) -> None:
        self.mask_cpu_s = mask_cpu_s
        self._owed_s = 0.0
        self._at_s: float | None = None
        self._taken_s: dict[int, float] = {}  # beyond mask_cpu_s, by handle

    def add(self, handle: int, cpu_s: float) -> None:
        """A step of this request's grammar took so much processor time."""
        excess_s = min(cpu_s, MAX_COUNTED_CPU_S) - self.mask_cpu_s
        if excess_s > 0:
            self._owed_s += excess_s
            self._taken_s[handle] = self._taken_s.get(handle, 0.0) + excess_s

    def leaving(
        self, present: Collection[int], alive: Collection[int], now_s: float
    ) -> list[tuple[int, float]]:
        """Which of `present` must leave, and what they took beyond the ordinary. alive: all that
        are still there."""
        if self._at_s is not None:
            self._owed_s = max(0.0, self._owed_s - SHARE * max(0.0, now_s - self._at_s))
        self._at_s = now_s
        if not self._taken_s:
            return []
        self._taken_s = {each: s for each, s in self._taken_s.items() if each in alive}
        leaving: list[tuple[int, float]] = []
        for handle in sorted(self._taken_s, key=self._taken_s.__getitem__, reverse=True):
            if self._owed_s <= BURST_CPU_S:
                break
            if handle not in present:
                continue
            leaving.append((handle, self._taken_s.pop(handle)))
            self._owed_s -= leaving[-1][1]
        self._owed_s = max(0.0, self._owed_s)
        return leaving
