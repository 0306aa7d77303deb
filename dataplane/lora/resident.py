"""Adapters in the pool: who is there, who uses them, what the idle ones are worth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dataplane.lora.layout import AdapterLayout, HostAdapter
from dataplane.pool.allocator import PoolIntegrityError
from dataplane.pool.pool import PagePool
from dataplane.pool.worth import UseCount, worth_key
from kernels.lora.plan import PageRun

_MAX_REMEMBERED = 4096  # adapters whose use is remembered, here or not


@dataclass(eq=False)
class ResidentAdapter:
    """An adapter whose pages are in the pool. `users` counts running sequences."""

    digest: str
    layout: AdapterLayout
    page_ids: list[int]
    pages: PageRun
    nbytes: int
    evict: Callable[[ResidentAdapter], int]
    users: int = 0

    def reclaim(self) -> int:
        return self.evict(self)


class ResidentAdapters:
    """Owner of all adapter pages. An adapter with users is never evicted; an idle one stays until
    the pool needs its pages more.

    reload_s: seconds to get an adapter of so many bytes back, by digest.
    """

    def __init__(self, pool: PagePool, reload_s: Callable[[str, int], float]) -> None:
        self._pool = pool
        self._reload_s = reload_s
        self._by_digest: dict[str, ResidentAdapter] = {}
        self._uses: OrderedDict[str, UseCount] = OrderedDict()
        self.num_idle_pages = 0

    def __iter__(self) -> Iterator[ResidentAdapter]:
        return iter(self._by_digest.values())

    def get(self, digest: str) -> ResidentAdapter | None:
        return self._by_digest.get(digest)

    def wanted(self, digest: str, now_s: float) -> None:
        """A request that names the adapter has come: one use, though it may yet have to wait."""
        uses = self._uses.setdefault(digest, UseCount())
        uses.add(now_s)
        self._uses.move_to_end(digest)
        if len(self._uses) > _MAX_REMEMBERED:
            self._uses.popitem(last=False)
        resident = self.get(digest)
        if resident and not resident.users:
            self._offer(resident)

    def install(self, host: HostAdapter) -> ResidentAdapter | None:
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
        resident = ResidentAdapter(
            host.digest, host.layout, page_ids, run, host.nbytes, self._evict
        )
        self._by_digest[host.digest] = resident
        self._count_idle(resident, 1)
        self._offer(resident)
        return resident

    def acquire(self, digest: str) -> ResidentAdapter:
        resident = self._by_digest[digest]
        if not resident.users:
            self._pool.idle.withdraw(resident)
            self._count_idle(resident, -1)
        resident.users += 1
        return resident

    def release(self, digest: str) -> None:
        resident = self._by_digest[digest]
        assert resident.users > 0
        resident.users -= 1
        if not resident.users:
            self._count_idle(resident, 1)
            self._offer(resident)

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check."""
        return {_owner(each.digest): each.page_ids for each in self}

    def check_integrity(self) -> None:
        """Raises: PoolIntegrityError."""
        idle = [each for each in self if not each.users]
        if sum(len(each.page_ids) for each in idle) != self.num_idle_pages:
            raise PoolIntegrityError(f"{self.num_idle_pages} idle adapter pages are not right")
        for each in self:
            if (each in self._pool.idle) != (not each.users):
                raise PoolIntegrityError(f"adapter {each.digest} wrongly offered or not offered")

    def _evict(self, resident: ResidentAdapter) -> int:
        assert not resident.users
        self._pool.idle.withdraw(resident)
        self._count_idle(resident, -1)
        self._pool.allocator.give_back(resident.page_ids, _owner(resident.digest))
        del self._by_digest[resident.digest]
        return len(resident.page_ids)

    def _offer(self, resident: ResidentAdapter) -> None:
        cost_s = self._reload_s(resident.digest, resident.nbytes)
        uses = self._uses.setdefault(resident.digest, UseCount())
        num_pages = max(len(resident.page_ids), 1)
        self._pool.idle.offer(resident, worth_key(cost_s, uses, num_pages))

    def _count_idle(self, resident: ResidentAdapter, sign: int) -> None:
        self.num_idle_pages += sign * len(resident.page_ids)
        self._pool.idle.num_pages += sign * len(resident.page_ids)


def _owner(digest: str) -> str:
    return f"adapter:{digest}"
