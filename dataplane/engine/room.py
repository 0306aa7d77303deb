"""Whether a waiting sequence fits into the pool, and making its pages free when it does."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from dataplane.engine.fit import check_fits
from dataplane.engine.growth import Growth
from dataplane.engine.prefix_cache import CachedBlock, PrefixCache
from dataplane.engine.sequence import Sequence
from dataplane.errors import PoolTooSmallError

if TYPE_CHECKING:
    from dataplane.lora.supply import AdapterSupply
    from dataplane.pool.pool import PagePool


class Room:
    def __init__(
        self, pool: PagePool, supply: AdapterSupply, prefixes: PrefixCache, growth: Growth
    ) -> None:
        self._pool = pool
        self._supply = supply
        self._prefixes = prefixes
        self._growth = growth

    def take(
        self, sequence: Sequence, cached: list[CachedBlock], running: Seq[Sequence], now_s: float
    ) -> bool:
        """Holds the adapter and the cached blocks of a waiting sequence, and sees to it that its
        other tokens fit. False, and nothing held, when that would lead to preemption: running work
        goes first."""
        digest = sequence.adapter.digest if sequence.adapter else ""
        resident = self._supply.resident.get(digest) if digest else None
        adapter_pages = self._supply.size_pages(digest) if digest and not resident else 0
        needed = self._pool.blocks_for(len(sequence.tokens)) - len(cached)
        # What it will use itself cannot be reclaimed for it.
        idle_blocks = sum(not block.users for block in cached)
        idle_adapter_pages = len(resident.page_ids) if resident and resident.is_idle else 0
        room = needed
        if running:  # alone, it may always begin
            room = max(room, self._growth.pages([*running, sequence]) - len(cached))
        if not self._pool.has_room(room, adapter_pages, idle_blocks, idle_adapter_pages):
            return False
        self._prefixes.hold(cached, now_s)
        if resident:
            self._supply.acquire(digest)
        has_room = self._pool.make_free(needed, adapter_pages)
        assert has_room
        if digest and not resident:
            self._supply.acquire(digest)
        return True

    def never_fits(self, sequence: Sequence) -> PoolTooSmallError | None:
        """Why it could not run even with the pool to itself, but for what is pinned there."""
        try:
            check_fits(sequence, self._supply.unusable_pages(sequence.queue_key), self._pool)
        except PoolTooSmallError as error:
            return error
        return None
