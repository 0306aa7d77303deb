"""A heap whose items can be re-keyed and discarded in O(log n)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_SLACK = 64


class LazyHeap(Generic[T]):
    """Items, the least key first; equal keys in order of entry.

    An item is in it once. Changing its key or discarding it only outdates its entry; outdated
    entries are skipped when they surface, and swept when they are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, T]] = []
        self._current: dict[T, int] = {}  # item -> the number of its valid entry
        self._next = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, item: T) -> bool:
        return item in self._current

    def __iter__(self) -> Iterator[T]:
        """In no particular order."""
        return iter(self._current)

    def push(self, item: T, key: Any) -> None:
        """Adds an item, or gives it another key."""
        self._next += 1
        self._current[item] = self._next
        heapq.heappush(self._heap, (key, self._next, item))
        if len(self._heap) > 2 * len(self._current) + _SLACK:
            self._sweep()

    def discard(self, item: T) -> None:
        self._current.pop(item, None)
        self._forget_if_empty()

    def peek(self) -> tuple[Any, T] | None:
        """Key and item of the least; None when empty."""
        heap = self._heap
        while heap:
            key, number, item = heap[0]
            if self._current.get(item) == number:
                return key, item
            heapq.heappop(heap)
        return None

    def pop(self) -> T:
        least = self.peek()
        assert least is not None
        heapq.heappop(self._heap)
        del self._current[least[1]]
        self._forget_if_empty()
        return least[1]

    def first(self, limit: int) -> list[T]:
        """Up to `limit` items in order; they stay."""
        taken: list[tuple[Any, int, T]] = []
        while len(taken) < limit and self.peek() is not None:
            taken.append(heapq.heappop(self._heap))
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return [item for _, _, item in taken]

    def _forget_if_empty(self) -> None:
        """Outdated entries would keep their items alive until the next push."""
        if not self._current:
            self._heap.clear()

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
        heapq.heapify(self._heap)
