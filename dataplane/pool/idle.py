"""What the pool can do without: cached blocks and adapters that nobody uses, least worth first."""

from __future__ import annotations

from typing import Protocol

from dataplane.pool.lazy_heap import LazyHeap


class Idle(Protocol):
    """Hashable by identity."""

    def reclaim(self) -> int:
        """Gives its pages back and forgets it; it is no longer offered. Returns their number."""
        ...


class IdlePages:
    """One order over everything unused, whoever owns it.

    `num_pages` also counts pages that become reclaimable only once others are gone, as the cached
    blocks before an unused one: reclaiming that many always succeeds.
    """

    def __init__(self) -> None:
        self._offers: LazyHeap[Idle] = LazyHeap()
        self.num_pages = 0  # kept by the owners

    def offer(self, item: Idle, worth: float) -> None:
        """From now on `item` may be reclaimed; again with another worth when it has changed."""
        self._offers.push(item, worth)

    def withdraw(self, item: Idle) -> None:
        self._offers.discard(item)

    def reclaim_worth_less(self, num_pages: int, worth: float) -> int:
        """As `reclaim`, but spares everything that is worth as much or more."""
        freed = 0
        while freed < num_pages and (least := self._offers.peek()) and least[0] < worth:
            freed += self._offers.pop().reclaim()
        return freed

    def __contains__(self, item: Idle) -> bool:
        return item in self._offers

    def reclaim(self, num_pages: int) -> int:
        """Frees at least `num_pages`, or all there are. Returns the number freed."""
        freed = 0
        while freed < num_pages and self._offers.peek() is not None:
            freed += self._offers.pop().reclaim()
        return freed
