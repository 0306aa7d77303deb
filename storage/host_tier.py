"""Built adapters in host memory: least recently used out first, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from storage.errors import TierFullError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HostTierStats:
    """Counters since the start; `entry_bytes` and `num_entries` are of now."""

    entry_bytes: int
    num_entries: int
    hits: int
    misses: int
    evictions: int


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    size_bytes: int
    users: int = 0


class HostTier(Generic[T]):
    """Digest → value. Not locked: one thread (the event loop's) owns it and makes every call.

    An entry is safe from eviction while its digest is pinned (an operator's wish, which outlives
    the entry and holds for a later `put`) or while somebody has acquired it (counted).
    """

    def __init__(self, max_bytes: int, *, on_evict: Callable[[str, T], None] | None = None) -> None:
        """on_evict: called after an entry has left by eviction, discard or replacement."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self._max_bytes = max_bytes
        self._on_evict = on_evict
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._pinned: set[str] = set()
        self._entry_bytes = self._hits = self._misses = self._evictions = 0

    def get(self, digest: str) -> T | None:
        """The value, now most recently used. Counts a hit or a miss."""
        entry = self._entries.get(digest)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(digest)
        return entry.value

    def contains(self, digest: str) -> bool:
        return digest in self._entries

    def put(self, digest: str, value: T, size_bytes: int) -> bool:
        """Keep `value`, evicting as needed. False, with nothing evicted, when what may not be
        evicted leaves no room. An acquired entry of this digest is not replaced.

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
        present = self._entries.get(digest)
        if present is not None and present.users:
            return False
        held = sum(
            entry.size_bytes
            for key, entry in self._entries.items()
            if key != digest and self._is_held(key, entry)
        )
        if held + size_bytes > self._max_bytes:
            return False
        if present is not None:
            self._remove(digest)
        for key in list(self._entries):
            if self._entry_bytes + size_bytes <= self._max_bytes:
                break
            if not self._is_held(key, self._entries[key]):
                self._evictions += 1
                self._remove(key)
        self._entries[digest] = _Entry(value, size_bytes)
        self._entry_bytes += size_bytes
        return True

    def discard(self, digest: str) -> bool:
        """Drop the entry, pinned or not. False if absent or acquired."""
        entry = self._entries.get(digest)
        if entry is None or entry.users:
            return False
        self._remove(digest)
        return True

    def pin(self, digest: str) -> None:
        self._pinned.add(digest)

    def unpin(self, digest: str) -> None:
        self._pinned.discard(digest)

    def acquire(self, digest: str) -> T | None:
        """`get` that also holds the entry until `release`."""
        value = self.get(digest)
        if value is not None:
            self._entries[digest].users += 1
        return value

    def release(self, digest: str) -> None:
        entry = self._entries.get(digest)
        assert entry is not None and entry.users > 0, "release without acquire"
        entry.users -= 1

    def digests(self) -> frozenset[str]:
        return frozenset(self._entries)

    def stats(self) -> HostTierStats:
        return HostTierStats(
            entry_bytes=self._entry_bytes,
            num_entries=len(self._entries),
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    def _is_held(self, digest: str, entry: _Entry[T]) -> bool:
        return entry.users > 0 or digest in self._pinned

    def _remove(self, digest: str) -> None:
        entry = self._entries.pop(digest)
        self._entry_bytes -= entry.size_bytes
        if self._on_evict is not None:
            self._on_evict(digest, entry.value)
