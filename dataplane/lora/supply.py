"""From "a request wants this adapter" to pages in the pool.

Each wanted digest: absent → queued → loading → arrived in host memory → in its pages, or on the way
there → gone again. What arrived and waits for pages is bounded by the pool's size: beyond that,
adapters stay queued, and one that arrives all the same is let go of and asked for again later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.channel import Adapter
from dataplane.cost_model import CostModel, Tier
from dataplane.errors import AdapterRefusedError, AdapterUnloadedError
from dataplane.load_reports import REPORTED_LOADS, TierCounters, WaitingPin
from dataplane.lora.layout import HostAdapter, too_large
from dataplane.lora.loader import AdapterLoader
from dataplane.lora.prefetch import Prefetcher, PrefetchTier
from dataplane.lora.resident import ResidentAdapters
from dataplane.pool.pool import PagePool

_COPY_SHARE = 0.05  # of a decode step, that copies may take between two
_START_SHARE = 0.03  # of a decode step, that a step may wait for the rest of an adapter
_MIN_COPY_S = 2e-4
_MAX_COPY_S = 5e-3  # while nothing is decoded; what needs an adapter then waits layer by layer


class Loads(NamedTuple):
    """Loads that have ended: digests that arrived in host memory, and what failed, and why."""

    arrived: list[str]
    failed: list[tuple[Adapter, Exception]]


@dataclass
class _Load:
    adapter: Adapter
    priority: float
    tier: Tier = "source"  # as the loader was asked, at asked_s
    asked_s: float = 0.0
    nbytes: int = 0  # known once it has arrived before


class _Arrived:
    """Adapters in host memory that are wanted, until they are admitted or nobody waits for them."""

    def __init__(self) -> None:
        self._by_digest: dict[str, HostAdapter] = {}
        self.num_bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._by_digest

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[HostAdapter]:
        return iter(self._by_digest.values())

    def get(self, digest: str) -> HostAdapter | None:
        return self._by_digest.get(digest)

    def add(self, adapter: HostAdapter) -> None:
        self.take(adapter.digest)
        self._by_digest[adapter.digest] = adapter
        self.num_bytes += adapter.nbytes

    def take(self, digest: str) -> HostAdapter | None:
        adapter = self._by_digest.pop(digest, None)
        if adapter is not None:
            self.num_bytes -= adapter.nbytes
        return adapter


class AdapterSupply:
    """Tracks each wanted digest. Never blocks."""

    def __init__(self, pool: PagePool, loader: AdapterLoader, costs: CostModel) -> None:
        self._loader = loader
        self._costs = costs
        self._num_pages = pool.num_pages
        self._max_arrived_bytes = pool.num_bytes
        self._queued: dict[str, _Load] = {}
        self._loading: dict[str, _Load] = {}
        self._arrived = _Arrived()
        self._to_place: list[str] = []
        self._unloading: dict[str, float] = {}  # digest -> when its last requests must end
        self.resident = ResidentAdapters(pool, self._reload_s)
        self.prefetches = Prefetcher(loader, self.resident, pool.num_pages)

    def poll(self, now_s: float) -> Loads:
        """Takes in what the loader has ended."""
        loads = Loads([], [])
        for digest, adapter, error in self._loader.results():
            self.prefetches.ended(digest, adapter, error, now_s)
            load = self._loading.pop(digest, None)
            if load is None:
                continue  # nobody wants it any more
            if adapter is None:
                assert error is not None
                loads.failed.append((load.adapter, error))
                continue
            took_s = now_s - load.asked_s
            self._costs.observe_load(load.tier, took_s, adapter.nbytes, adapter.weights_bytes)
            load.nbytes = adapter.nbytes
            if (pages := adapter.pages.shape[1]) >= self._num_pages:
                loads.failed.append((load.adapter, too_large(digest, pages, self._num_pages)))
            elif self.resident.get(digest):
                loads.arrived.append(digest)  # a prefetch brought it there
            elif self._arrived and not self._has_place(load):
                self._queued[digest] = load
            else:
                self._arrived.add(adapter)
                self._to_place.append(digest)
                loads.arrived.append(digest)
        self._start_queued(now_s)
        self.prefetches.go_on(now_s)
        return loads

    def want(self, adapter: Adapter, now_s: float, priority: float = 0.0) -> None:
        """Starts loading unless it is there or on its way. priority: of loads that must queue, the
        highest of those who want the adapter counts."""
        digest = adapter.digest
        if digest in self._arrived or self._is_resident(digest):
            return
        load = self._loading.get(digest) or self._queued.get(digest)
        if load is None:
            load = self._queued[digest] = _Load(adapter, priority)
            self._start_queued(now_s)
        elif priority > load.priority:
            load.priority = priority
            if digest in self._loading:
                self._loader.request(adapter, priority=priority)

    def used(self, digest: str, now_s: float) -> None:
        """A request that names the adapter has come."""
        self.resident.wanted(digest, now_s)
        self.prefetches.used(digest, now_s)

    def ready_in_s(self, digest: str, now_s: float) -> float:
        """Predicted time until it can be made resident; 0 when it can be now. While it is queued,
        that is a load's: how long it stays queued depends on requests that end, as their own
        admission does."""
        if digest in self._arrived or self._is_resident(digest):
            return 0.0
        load = self._loading.get(digest)
        if load is None:
            return self._costs.load_s(self.tier(digest))
        return max(0.0, load.asked_s + self._costs.load_s(load.tier) - now_s)

    def pages_missing(self, digest: str) -> int | None:
        """Pages that must be free to make it resident: 0 when it is, None while it is not here."""
        if self._is_resident(digest):
            return 0
        arrived = self._arrived.get(digest)
        return arrived.pages.shape[1] if arrived else None

    def size_pages(self, digest: str) -> int:
        """Pages of an adapter that is resident or has arrived."""
        resident = self.resident.get(digest)
        if resident is not None:
            return len(resident.page_ids)
        arrived = self._arrived.get(digest)
        assert arrived is not None
        return arrived.pages.shape[1]

    def unusable_pages(self, digest: str) -> int:
        """Pages that KV blocks of its requests can never have: its own, and what is pinned."""
        resident = self.resident.get(digest) if digest else None
        own = self.size_pages(digest) if digest else 0
        pinned = self.resident.num_pinned_pages
        return pinned if resident is not None and resident.pinned else own + pinned

    def unlike(self, adapter: Adapter) -> AdapterRefusedError | None:
        """Why a request's adapter, resident or arrived, is not the one that the request takes it
        for: a control plane that does not know activated LoRAs would have them apply to all
        tokens."""
        found = self.resident.get(adapter.digest) or self._arrived.get(adapter.digest)
        assert found is not None
        if found.invocation_tokens == adapter.invocation_tokens:
            return None
        return AdapterRefusedError(
            "INVOCATION_UNKNOWN",
            "the request's ticket does not tell the invocation tokens that the adapter has"
            " (alora_invocation_tokens): bring all control planes to this version",
            {"digest": adapter.digest},
        )

    def acquire(self, digest: str) -> None:
        """Makes an arrived adapter resident if need be, and holds it. Its pages must be free."""
        host = self._arrived.take(digest)
        if self.resident.get(digest) is None:
            assert host is not None
            installed = self.resident.install(host)
            assert installed is not None
        self.resident.acquire(digest)

    def drop(self, digest: str) -> None:
        """No waiting request names it any more: its load ends, unless a prefetch goes on with it,
        and an arrived adapter is let go of; the host tier may keep it."""
        self._queued.pop(digest, None)
        self._arrived.take(digest)
        if self._loading.pop(digest, None) and not self.prefetches.is_loading(digest):
            self._loader.cancel(digest)

    def advance(self, step_s: float | None) -> None:
        """Goes on with copies into the pool. step_s: of decoding those who do not wait for one;
        None when there are none, and so nobody who could be held up."""
        self._place_ahead()
        copier = self.resident.copier
        if not copier.num_copies:
            return
        budget_s = _MAX_COPY_S if step_s is None else max(step_s * _COPY_SHARE, _MIN_COPY_S)
        limit_s = None if step_s is None else max(step_s * _START_SHARE, _MIN_COPY_S)
        copier.advance(budget_s)
        for each in self.resident:
            if not each.may_start and each.copy.num_layers_in:
                each.may_start = limit_s is None or copier.remaining_s(each.copy) <= limit_s
        for nbytes, took_s in self.resident.note_copies():
            self._costs.observe_copy(took_s, nbytes)

    def may_start(self, digest: str) -> bool:
        """Whether a forward pass may use an acquired adapter now: most of it, or all, is in."""
        resident = self.resident.get(digest)
        assert resident is not None
        return resident.may_start or not resident.is_copying

    def unload(self, digest: str, until_s: float) -> None:
        """Frees it in the pool and in host memory: at once if nobody uses it, else after the last
        token, and at `until_s` whoever still runs is to end with `overdue`'s error. Requests that
        come later load it again."""
        self.prefetches.forget(digest)
        self._loader.discard(digest)
        if not self.resident.unload(digest):
            self._unloading[digest] = until_s

    def overdue(self, now_s: float) -> list[tuple[str, AdapterUnloadedError]]:
        """Adapters whose users' time is over. Asked until nobody uses them any more."""
        gone: list[tuple[str, AdapterUnloadedError]] = []
        for digest, until_s in list(self._unloading.items()):
            resident = self.resident.get(digest)
            if resident is None or not resident.leaving:
                del self._unloading[digest]
            elif now_s >= until_s:
                gone.append((digest, AdapterUnloadedError(digest)))
        return gone

    @property
    def is_busy(self) -> bool:
        """Something is to be done even if no request runs or waits."""
        return bool(self.resident.copier.num_copies) or self.prefetches.is_busy

    @property
    def is_copying(self) -> bool:
        return bool(self.resident.copier.num_copies)

    def tier(self, digest: str) -> Tier:
        """The nearest tier below the pool that has it."""
        residency = self._loader.residency()
        if digest in residency.host:
            return "host"
        return "disk" if digest in residency.disk else "source"

    def _is_resident(self, digest: str) -> bool:
        resident = self.resident.get(digest)
        return resident is not None and not resident.leaving

    def _start_queued(self, now_s: float) -> None:
        while self._queued:
            # One that is being unloaded is had anew once it is gone.
            startable = [each for each in self._queued if self.resident.get(each) is None]
            if not startable:
                return
            digest = max(startable, key=lambda each: self._queued[each].priority)
            load = self._queued[digest]
            if self._arrived and not self._has_place(load):
                return
            del self._queued[digest]
            self._loading[digest] = load
            load.tier, load.asked_s = self.tier(digest), now_s
            self._loader.request(load.adapter, priority=load.priority)

    def _has_place(self, load: _Load) -> bool:
        return self._arrived.num_bytes + load.nbytes < self._max_arrived_bytes

    def pin(self, adapter: Adapter, tier: PrefetchTier, now_s: float) -> None:
        """It is brought there and stays, in host memory in any case."""
        self._loader.pin(adapter.digest)
        if tier == "pool":
            self.resident.pin(adapter.digest)
        self.prefetches.pin(adapter, tier, now_s)

    def unpin(self, digest: str) -> None:
        self.prefetches.unpin(digest)
        self._loader.unpin(digest)
        self.resident.unpin(digest)

    def pool_tier(self) -> TierCounters:
        """Adapters in the pool, which they share with keys and values."""
        adapters = list(self.resident)
        counters = self.resident.counters
        return TierCounters(
            tier="pool",
            num_adapters=len(adapters),
            size_bytes=sum(each.nbytes for each in adapters),
            max_bytes=self._max_arrived_bytes,
            num_hits=counters.hits,
            num_misses=counters.misses,
            num_evictions=counters.evictions,
        )

    def waiting_pins(self) -> list[WaitingPin]:
        """The first of those that wait."""
        return [
            WaitingPin(digest=each.adapter.digest, tier=each.tier, reason=each.reason)
            for each in self.prefetches.waiting_pins.all()[:REPORTED_LOADS]
        ]

    def _place_ahead(self) -> None:
        """Arrived adapters go to free pages, and those of what is worth less, before their requests
        are admitted, which need not wait for the copy then. Each once: what is displaced again is
        put back only when its turn has come, from the host copy that is held until then."""
        for digest in self._to_place:
            host = self._arrived.get(digest)
            if host is not None and self.resident.get(digest) is None:
                self.resident.install_if_worth(host)
        self._to_place.clear()

    def _reload_s(self, digest: str, nbytes: int) -> float:
        return self._costs.reload_s(self.tier(digest), nbytes)
