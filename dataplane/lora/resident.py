"""Adapters in the pool: who is there, who uses them, which go when pages run out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.lora.layout import AdapterLayout, HostAdapter
from dataplane.pool.pool import PagePool
from kernels.lora.plan import PageRun


@dataclass
class ResidentAdapter:
    """An adapter whose pages are in the pool. `users` counts running sequences."""

    digest: str
    layout: AdapterLayout
    page_ids: list[int]
    pages: PageRun
    users: int = 0
    last_used_s: float = 0.0


class ResidentAdapters:
    """Owner of all adapter pages. An adapter with users is never evicted."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._by_digest: dict[str, ResidentAdapter] = {}

    def __iter__(self) -> Iterator[ResidentAdapter]:
        return iter(self._by_digest.values())

    def get(self, digest: str) -> ResidentAdapter | None:
        return self._by_digest.get(digest)

    @property
    def num_idle_pages(self) -> int:
        return sum(len(each.page_ids) for each in self if not each.users)

    def install(self, host: HostAdapter, now_s: float) -> ResidentAdapter | None:
        """Copies an adapter into the pool; None when too few pages are free."""
        assert host.digest not in self._by_digest
        page_ids = self._pool.allocator.take_run(host.pages.shape[1], _owner(host.digest))
        if page_ids is None:
            return None
        run = PageRun.of(page_ids, self._pool.device)
        if run.first >= 0:
            self._pool.data[:, run.first : run.first + len(page_ids)].copy_(host.pages)
        else:
            self._pool.data.index_copy_(1, run.page_ids, host.pages.to(self._pool.device))
        resident = ResidentAdapter(host.digest, host.layout, page_ids, run, 0, now_s)
        self._by_digest[host.digest] = resident
        return resident

    def acquire(self, digest: str, now_s: float) -> ResidentAdapter:
        resident = self._by_digest[digest]
        resident.users += 1
        resident.last_used_s = now_s
        return resident

    def release(self, digest: str, now_s: float) -> None:
        resident = self._by_digest[digest]
        assert resident.users > 0
        resident.users -= 1
        resident.last_used_s = now_s

    def evict_idle(self, num_pages: int, keep: str | None = None) -> int:
        """Evicts idle adapters, the longest unused first, until `num_pages` were freed or none is
        left. Returns the pages freed. `keep` is a digest not to evict."""
        freed = 0
        idle = [each for each in self if not each.users and each.digest != keep]
        for resident in sorted(idle, key=lambda each: each.last_used_s):
            if freed >= num_pages:
                break
            freed += len(resident.page_ids)
            self._evict(resident)
        return freed

    def clear_idle(self) -> None:
        self.evict_idle(self._pool.num_pages)

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check."""
        return {_owner(each.digest): each.page_ids for each in self}

    def _evict(self, resident: ResidentAdapter) -> None:
        self._pool.allocator.give_back(resident.page_ids, _owner(resident.digest))
        del self._by_digest[resident.digest]


def _owner(digest: str) -> str:
    return f"adapter:{digest}"
