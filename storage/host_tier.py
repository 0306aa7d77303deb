"""Built adapters in host memory, bounded in bytes: the least worth goes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from storage.errors import TierFullError
from storage.eviction import Worth

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HostTierStats:
    """Counters since the start; `entry_bytes` and `num_entries` are of now."""

    entry_bytes: int
    num_entries: int
    num_hits: int
    num_misses: int
    num_evictions: int


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    size_bytes: int


class HostTier(Generic[T]):
    """Digest → value. Not locked: one thread (the event loop's) owns it and makes every call.

    An entry is safe from eviction while its digest is pinned: an operator's wish, which outlives
    the entry and holds for a later `put`. Whoever has got a value may go on using it.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        reload_s: Callable[[str, int], float] | None = None,
    ) -> None:
        """reload_s: seconds to get a digest of so many bytes back; without it, a byte costs the
        same everywhere."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self._max_bytes = max_bytes
        self._entries: dict[str, _Entry[T]] = {}
        self._worth = Worth(reload_s or _by_size)
        self._pinned: set[str] = set()
        self._entry_bytes = self._hits = self._misses = self._evictions = 0

    def get(self, digest: str) -> T | None:
        """The value. Counts a use, and a hit or a miss."""
        self._worth.use(digest)
        entry = self._entries.get(digest)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        return entry.value

    def peek(self, digest: str) -> T | None:
        """The value; counts nothing."""
        entry = self._entries.get(digest)
        return None if entry is None else entry.value

    def put(self, digest: str, value: T, size_bytes: int, *, speculative: bool = False) -> bool:
        """Keep `value`, evicting as needed. False, with nothing evicted, when what may not be
        evicted leaves no room. speculative: nobody has asked for it yet, so nothing that is worth
        more may go for it; that somebody is expected to ask counts as a use.

        Raises: TierFullError when it could never fit.
        """
        if size_bytes < 0:
            raise ValueError(f"size_bytes must not be negative, got {size_bytes}")
        if size_bytes > self._max_bytes:
            raise TierFullError(
                f"adapter needs {size_bytes} bytes of host cache, which holds {self._max_bytes}; "
                "raise --host-cache-bytes",
                metadata={"size_bytes": str(size_bytes), "max_bytes": str(self._max_bytes)},
            )
        if speculative:
            self._worth.expect(digest)
        present = self._entries.get(digest)
        replaced = present.size_bytes if present is not None else 0
        victims = self._victims(digest, size_bytes - replaced, size_bytes, speculative)
        if victims is None:
            return False
        if present is not None:
            self._remove(digest)
        for victim in victims:
            self._evictions += 1
            self._remove(victim)
        self._entries[digest] = _Entry(value, size_bytes)
        self._entry_bytes += size_bytes
        self._worth.keep(digest, size_bytes)
        return True

    def discard(self, digest: str) -> bool:
        """Drop the entry, pinned or not. False if absent."""
        if digest not in self._entries:
            return False
        self._remove(digest)
        return True

    def pin(self, digest: str) -> None:
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        self._pinned.discard(digest)

    def digests(self) -> frozenset[str]:
        return frozenset(self._entries)

    def stats(self) -> HostTierStats:
        return HostTierStats(
            entry_bytes=self._entry_bytes,
            num_entries=len(self._entries),
            num_hits=self._hits,
            num_misses=self._misses,
            num_evictions=self._evictions,
        )

    def _victims(
        self, digest: str, growth: int, size_bytes: int, speculative: bool
    ) -> list[str] | None:
        """Whom to evict so that the tier may grow by so many bytes; None when it cannot."""
        excess = self._entry_bytes + growth - self._max_bytes
        victims: list[str] = []
        if excess <= 0:
            return victims
        limit = self._worth.key(digest, size_bytes) if speculative else None
        for candidate, key in self._worth.least_first():
            if limit is not None and key >= limit:
                break
            if candidate == digest or candidate in self._pinned:
                continue
            victims.append(candidate)
            excess -= self._entries[candidate].size_bytes
            if excess <= 0:
                return victims
        return None

    def _remove(self, digest: str) -> None:
        self._entry_bytes -= self._entries.pop(digest).size_bytes
        self._worth.drop(digest)


def _by_size(digest: str, size_bytes: int) -> float:
    return float(size_bytes)
