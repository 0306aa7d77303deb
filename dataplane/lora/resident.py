"""Adapters in the pool: who is there, who uses them, what the idle ones are worth.

One with users or pinned is held: it is never evicted. Any other is idle, and stays until the pool
needs its pages more. One that is to be unloaded goes as soon as nobody uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dataplane.lora.copier import PoolCopier, PoolCopy, waiter
from dataplane.lora.layout import AdapterLayout, HostAdapter
from dataplane.pool.allocator import PoolIntegrityError
from dataplane.pool.pool import PagePool
from dataplane.pool.worth import UseCount, worth_key
from kernels.lora.plan import PageRun

_MAX_REMEMBERED = 4096  # adapters whose use is remembered, here or not
_PINNED_SHARE = 2  # at most one page in so many
_MAX_COPY_TIMES = 256


@dataclass
class PoolCounters:
    """Since the start. hits, misses: requests whose adapter was here when they came, and was not.
    evictions: of idle adapters, to make room."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


@dataclass(eq=False)
class ResidentAdapter:
    """An adapter whose pages are in the pool, or on their way there by `copy`. `users` counts
    running sequences."""

    digest: str
    layout: AdapterLayout
    page_ids: list[int]
    pages: PageRun
    nbytes: int
    evict: Callable[[ResidentAdapter], int]
    copy: PoolCopy
    users: int = 0
    pinned: bool = False
    leaving: bool = False  # goes when its last user does
    invocation_tokens: tuple[int, ...] = ()
    may_start: bool = False  # a forward pass may use it, waiting for each layer

    @property
    def is_idle(self) -> bool:
        return not self.users and not self.pinned

    @property
    def is_copying(self) -> bool:
        return self.copy.remaining_bytes > 0

    def reclaim(self) -> int:
        return self.evict(self)


class ResidentAdapters:
    """Owner of all adapter pages.

    reload_s: seconds to get an adapter of so many bytes back, by digest.
    """

    def __init__(self, pool: PagePool, reload_s: Callable[[str, int], float]) -> None:
        self._pool = pool
        self._reload_s = reload_s
        self._by_digest: dict[str, ResidentAdapter] = {}
        self._uses: OrderedDict[str, UseCount] = OrderedDict()
        self._pinned: set[str] = set()
        self._copy_s: OrderedDict[str, float] = OrderedDict()
        self.copier = PoolCopier(pool.data)
        self.counters = PoolCounters()
        self.num_idle_pages = 0

    def __iter__(self) -> Iterator[ResidentAdapter]:
        return iter(self._by_digest.values())

    def get(self, digest: str) -> ResidentAdapter | None:
        return self._by_digest.get(digest)

    def held(self, digest: str) -> ResidentAdapter:
        """Of a running sequence."""
        resident = self.get(digest)
        assert resident is not None
        return resident

    def wanted(self, digest: str, now_s: float) -> None:
        """A request that names the adapter has come: one use, though it may yet have to wait."""
        self._uses_of(digest).add(now_s)
        self._uses.move_to_end(digest)
        resident = self.get(digest)
        if resident is None:
            self.counters.misses += 1
        else:
            self.counters.hits += 1
        if resident and resident.is_idle:
            self._offer(resident)

    def expected(self, digest: str, now_s: float, weight: float) -> None:
        """It is likely to be wanted: a part of a use."""
        self._uses_of(digest).add(now_s, weight)

    @property
    def pool_bytes(self) -> int:
        return self._pool.num_bytes

    def worth(self, digest: str, nbytes: int, num_pages: int) -> float:
        """What an adapter is worth in the pool, there or not."""
        cost_s = self._reload_s(digest, nbytes)
        return worth_key(cost_s, self._uses_of(digest), max(num_pages, 1))

    def install(self, host: HostAdapter) -> ResidentAdapter | None:
        """Begins to copy an adapter into the pool; None when too few pages are free."""
        assert host.digest not in self._by_digest
        page_ids = self._pool.allocator.take_run(host.pages.shape[1], _owner(host.digest))
        if page_ids is None:
            return None
        run = PageRun.of(page_ids)
        mirror = self._pool.mirror
        on_all_ranks = mirror.install(host, page_ids) if mirror is not None else None
        resident = ResidentAdapter(
            host.digest,
            host.layout,
            page_ids,
            run,
            host.nbytes,
            self._evict,
            self.copier.begin(host.pages, run, on_all_ranks),
            pinned=host.digest in self._pinned and self.can_pin(len(page_ids)),
            invocation_tokens=host.invocation_tokens,
        )
        self._by_digest[host.digest] = resident
        if resident.is_idle:
            self._count_idle(resident, 1)
            self._offer(resident)
        return resident

    def install_pinned(self, host: HostAdapter) -> bool:
        """As `install`, in place of any that nobody uses; False when pinned ones have their share
        already, or those in use leave too few pages."""
        num_pages = host.pages.shape[1]
        return (
            self.can_pin(num_pages)
            and self._pool.make_free(num_pages)
            and self.install(host) is not None
        )

    def has_room_to_pin(self, num_pages: int) -> bool:
        """Whether `install_pinned` would succeed with so many pages."""
        return self.can_pin(num_pages) and num_pages <= self._pool.num_available

    def install_if_worth(self, host: HostAdapter) -> bool:
        """As `install`, into free pages and those of what is worth less. False, and nothing lost
        but what is worth less, when they are too few."""
        num_pages = host.pages.shape[1]
        worth = self.worth(host.digest, host.nbytes, num_pages)
        return self._pool.make_free_for(num_pages, worth) and self.install(host) is not None

    def acquire(self, digest: str) -> ResidentAdapter:
        resident = self._by_digest[digest]
        if resident.is_idle:
            self._pool.idle.withdraw(resident)
            self._count_idle(resident, -1)
        resident.users += 1
        return resident

    def release(self, digest: str) -> None:
        """A copy that is not yet complete is given up with its last user: nobody waits for it."""
        resident = self._by_digest[digest]
        assert resident.users > 0
        resident.users -= 1
        if resident.users:
            return
        if resident.leaving or (resident.is_copying and not resident.pinned):
            self._remove(resident)
        elif not resident.pinned:
            self._count_idle(resident, 1)
            self._offer(resident)

    def pin(self, digest: str) -> None:
        """From now on it is never evicted, be it here or come later, as far as pinned ones may take
        pages. Undoes `unload`."""
        self._pinned.add(digest)
        resident = self._by_digest.get(digest)
        if resident is None or resident.pinned or not self.can_pin(len(resident.page_ids)):
            return
        resident.leaving = False
        if resident.is_idle:
            self._pool.idle.withdraw(resident)
            self._count_idle(resident, -1)
        resident.pinned = True

    def unpin(self, digest: str) -> None:
        self._pinned.discard(digest)
        resident = self._by_digest.get(digest)
        if resident is None or not resident.pinned:
            return
        resident.pinned = False
        if resident.is_idle:
            self._count_idle(resident, 1)
            self._offer(resident)

    @property
    def num_pinned_pages(self) -> int:
        if not self._pinned:
            return 0
        return sum(len(each.page_ids) for each in self if each.pinned)

    def can_pin(self, num_pages: int) -> bool:
        """Whether so many more pages may be pinned: half of the pool is for requests."""
        return self.num_pinned_pages + num_pages <= self._pool.num_pages // _PINNED_SHARE

    def unload(self, digest: str) -> bool:
        """Frees its pages, at once if nobody uses it, else with its last user; unpins it. True
        once it is not here."""
        self.unpin(digest)
        resident = self._by_digest.get(digest)
        if resident is None:
            return True
        if resident.users:
            resident.leaving = True
            return False
        self._let_go(resident)
        return True

    def note_copies(self) -> list[tuple[int, float]]:
        """Remembers what copies took that have come to their end; (bytes, seconds) of each."""
        noted: list[tuple[int, float]] = []
        for copy, took_s in self.copier.take_ended():
            for each in self:
                if each.copy is copy:
                    noted.append((each.nbytes, took_s))
                    self._copy_s[each.digest] = took_s
                    self._copy_s.move_to_end(each.digest)
            while len(self._copy_s) > _MAX_COPY_TIMES:
                self._copy_s.popitem(last=False)
        return noted

    def copy_s(self, digest: str) -> float:
        """What its last copy into the pool took; 0 when that is not known."""
        return self._copy_s.get(digest, 0.0)

    @property
    def num_pages(self) -> int:
        """Of all adapters here."""
        return sum(len(each.page_ids) for each in self)

    def waiter(self, digests: Iterable[str]) -> Callable[[int], None] | None:
        """Waits for a layer of those of them that are on their way; None when all are in."""
        copies = [self._by_digest[each].copy for each in dict.fromkeys(digests)]
        return waiter([copy for copy in copies if copy.remaining_bytes])

    def claims(self) -> dict[str, list[int]]:
        """Owner -> pages, for the integrity check."""
        return {_owner(each.digest): each.page_ids for each in self}

    def check_integrity(self) -> None:
        """Raises: PoolIntegrityError."""
        idle = [each for each in self if each.is_idle]
        if sum(len(each.page_ids) for each in idle) != self.num_idle_pages:
            raise PoolIntegrityError(f"{self.num_idle_pages} idle adapter pages are not right")
        for each in self:
            if (each in self._pool.idle) != each.is_idle:
                raise PoolIntegrityError(f"adapter {each.digest} wrongly offered or not offered")

    def _evict(self, resident: ResidentAdapter) -> int:
        self.counters.evictions += 1
        return self._let_go(resident)

    def _let_go(self, resident: ResidentAdapter) -> int:
        assert resident.is_idle
        self._pool.idle.withdraw(resident)
        self._count_idle(resident, -1)
        return self._remove(resident)

    def _remove(self, resident: ResidentAdapter) -> int:
        """It is neither held nor offered any more."""
        self.copier.cancel(resident.copy)
        self._pool.allocator.give_back(resident.page_ids, _owner(resident.digest))
        del self._by_digest[resident.digest]
        return len(resident.page_ids)

    def _offer(self, resident: ResidentAdapter) -> None:
        worth = self.worth(resident.digest, resident.nbytes, len(resident.page_ids))
        self._pool.idle.offer(resident, worth)

    def _uses_of(self, digest: str) -> UseCount:
        uses = self._uses.setdefault(digest, UseCount())
        while len(self._uses) > _MAX_REMEMBERED:
            self._uses.popitem(last=False)
        return uses

    def _count_idle(self, resident: ResidentAdapter, sign: int) -> None:
        self.num_idle_pages += sign * len(resident.page_ids)
        self._pool.idle.num_pages += sign * len(resident.page_ids)


def _owner(digest: str) -> str:
    return f"adapter:{digest}"
