"""What a kept adapter is worth, and which one to give up first.

    worth = (seconds to get it back) x (uses, older ones fading) / bytes

The count of uses is LRFU's combined recency and frequency (Lee et al., "LRFU: A Spectrum of
Policies", IEEE Transactions on Computers 50(12), 2001); weighing by cost and size is that of
GreedyDual-Size (Cao and Irani, USENIX Symposium on Internet Technologies 1997). Uses fade with
uses, not with time: a tier nobody asks keeps its order. `benchmarks.eviction` compares it with LRU
and with the clairvoyant bound.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

_TURNS = 4.0
"""A use counts half after so many uses for each kept entry. More favours what is popular for long,
less what was wanted a moment ago; traces of both kinds are better off than with LRU at this."""
_MIN_ENTRIES = 8
_MAX_REMEMBERED = 16_384  # digests whose uses are remembered, kept or not
_SLACK = 64


class Worth:
    """Uses of all digests lately, and the order of those that are kept.

    All counts fade at one rate, so the order of two entries changes only when one of them is used:
    keys are logarithms as of the first use, and a heap of them needs no refreshing.
    """

    def __init__(self, reload_s: Callable[[str, int], float]) -> None:
        """reload_s: seconds to get so many bytes of a digest back once they are given up."""
        self._reload_s = reload_s
        self._log_now = 0.0
        self._log_uses: OrderedDict[str, float] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._keys: dict[str, int] = {}  # kept digest -> the number of its valid entry
        self._heap: list[tuple[float, int, str]] = []
        self._next = 0

    def use(self, digest: str) -> None:
        """Counts a use, of an entry that is kept or of one that is missed."""
        self._log_now += math.log(2.0) / (_TURNS * max(len(self._keys), _MIN_ENTRIES))
        self.expect(digest)

    def expect(self, digest: str) -> None:
        """Counts a use that is to come; those of others do not fade by it."""
        before = self._log_uses.pop(digest, -math.inf)
        self._log_uses[digest] = self._log_now + math.log1p(math.exp(before - self._log_now))
        if len(self._log_uses) > max(_MAX_REMEMBERED, 2 * len(self._keys)):
            self._forget_oldest()
        if digest in self._keys:
            self._push(digest)

    def key(self, digest: str, size_bytes: int) -> float:
        """Its place in the order, as an entry of so many bytes; higher is worth more. A digest
        never used counts as if it were used now."""
        log_uses = self._log_uses.get(digest, self._log_now)
        cost_s = max(self._reload_s(digest, size_bytes), 1e-9)
        return log_uses + math.log(cost_s / max(size_bytes, 1))

    def keep(self, digest: str, size_bytes: int) -> None:
        """From now on it is one of those to choose from."""
        if digest not in self._log_uses:
            self.use(digest)
        self._sizes[digest] = size_bytes
        self._push(digest)

    def drop(self, digest: str) -> None:
        """It is not kept any more; its uses are remembered."""
        del self._keys[digest], self._sizes[digest]

    def least_first(self) -> Iterator[tuple[str, float]]:
        """Kept digests with their keys, the least worth first. Nothing may be counted, kept or
        dropped while it is read."""
        heap, met = self._heap, list[tuple[float, int, str]]()
        try:
            while heap:
                entry = heapq.heappop(heap)
                key, number, digest = entry
                if self._keys.get(digest) != number:
                    continue  # outdated, or dropped
                met.append(entry)
                yield digest, key
        finally:
            for entry in met:
                heapq.heappush(heap, entry)

    def _push(self, digest: str) -> None:
        self._next += 1
        self._keys[digest] = self._next
        heapq.heappush(self._heap, (self.key(digest, self._sizes[digest]), self._next, digest))
        if len(self._heap) > 2 * len(self._keys) + _SLACK:
            self._heap = [each for each in self._heap if self._keys.get(each[2]) == each[1]]
            heapq.heapify(self._heap)

    def _forget_oldest(self) -> None:
        for digest in self._log_uses:
            if digest not in self._keys:
                del self._log_uses[digest]
                return
