"""Virtual-token fairness (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024).

Each key (a tenant; within a tenant, an adapter) has a counter of the service it had, in weighted
tokens. Who waits and had least is next. A key that comes to wait after a pause is lifted to the
least of those that wait, so that nobody saves up service by staying away.

Two keys that wait all the time differ in service by at most the service of what one of them can
have in the running batch at once plus one prompt, whatever their numbers and sizes of requests.
"""

from __future__ import annotations

from dataplane.pool.lazy_heap import LazyHeap

PROMPT_WEIGHT = 1.0
"""Of one computed prompt token; cached ones are free."""

OUTPUT_WEIGHT = 2.0
"""Of one generated token."""

_MAX_PAUSED = 1024
"""Keys that pause before any are forgotten."""


class VirtualTokens:
    """Counters of service, and how many requests of each key wait."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._order = LeastServed(self)  # of the keys that wait
        self._left_at = 0.0  # counter of the key that ceased to wait last
        self._forget_above = _MAX_PAUSED  # paused keys

    def served(self, key: str) -> float:
        return self._served.get(key, 0.0)

    def enter(self, key: str) -> None:
        """One more request of `key` waits."""
        if key not in self._waiting:
            self._served[key] = max(self.served(key), self.floor())
            self._order.add(key)
        self._waiting[key] = self._waiting.get(key, 0) + 1

    def leave(self, key: str) -> None:
        """One request of `key` waits no more."""
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
            self._order.discard(key)
            self._left_at = max(self._left_at, self.served(key))
            self._forget_equals()

    def charge(self, key: str, amount: float) -> None:
        self._served[key] = self.served(key) + amount

    def floor(self) -> float:
        """What a newcomer's counter is lifted to."""
        least = self._order.least()
        return self._left_at if least is None else self.served(least)

    def keys(self) -> list[str]:
        return list(self._served)

    def _forget_equals(self) -> None:
        """A paused key at or below the floor would be lifted anyway: its counter says nothing."""
        if len(self._served) <= len(self._waiting) + self._forget_above:
            return
        floor = self.floor()
        self._served = {
            key: served
            for key, served in self._served.items()
            if served > floor or key in self._waiting
        }
        # Those that are left are many as long as they are ahead: not to be gone through each time.
        num_paused = len(self._served) - len(self._waiting)
        self._forget_above = max(_MAX_PAUSED, 2 * num_paused)


class LeastServed:
    """Keys in the order of their counters, which only grow: a place is put right when reached."""

    def __init__(self, tokens: VirtualTokens) -> None:
        self._tokens = tokens
        self._heap: LazyHeap[str] = LazyHeap()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: str) -> None:
        if key not in self._heap:
            self._heap.push(key, self._tokens.served(key))

    def discard(self, key: str) -> None:
        self._heap.discard(key)

    def least(self) -> str | None:
        while (entry := self._heap.peek()) is not None:
            counter, key = entry
            served = self._tokens.served(key)
            if served <= counter:
                return key
            self._heap.push(key, served)
        return None

    def first(self, limit: int) -> list[str]:
        """Up to `limit` keys; the order past the first is as of their last turn."""
        self.least()
        return self._heap.first(limit)
