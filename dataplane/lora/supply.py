"""From "a request wants this adapter" to pages in the pool."""

from __future__ import annotations

from typing import NamedTuple

from dataplane.channel import Adapter
from dataplane.cost_model import CostModel, Tier
from dataplane.errors import PoolTooSmallError
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import AdapterLoader
from dataplane.lora.resident import ResidentAdapters
from dataplane.pool.pool import PagePool


class Loads(NamedTuple):
    """Loads that have ended: digests that arrived in host memory, and what failed, and why."""

    arrived: list[str]
    failed: list[tuple[Adapter, Exception]]


class _Load(NamedTuple):
    adapter: Adapter
    tier: Tier
    asked_s: float


class AdapterSupply:
    """Tracks each wanted digest: absent → loading → in host memory → resident. Never blocks."""

    def __init__(self, pool: PagePool, loader: AdapterLoader, costs: CostModel) -> None:
        self._loader = loader
        self._costs = costs
        self._num_pages = pool.num_pages
        self._loading: dict[str, _Load] = {}
        self._arrived: dict[str, HostAdapter] = {}
        self.resident = ResidentAdapters(pool, self._reload_s)

    def poll(self, now_s: float) -> Loads:
        """Takes in what the loader has ended."""
        loads = Loads([], [])
        for digest, adapter, error in self._loader.results():
            load = self._loading.pop(digest)
            if adapter is None:
                assert error is not None
                loads.failed.append((load.adapter, error))
                continue
            self._costs.observe_load(load.tier, now_s - load.asked_s, adapter.nbytes)
            if (pages := adapter.pages.shape[1]) >= self._num_pages:
                loads.failed.append((load.adapter, self._too_large(digest, pages)))
            else:
                self._arrived[digest] = adapter
                loads.arrived.append(digest)
        return loads

    def want(self, adapter: Adapter, now_s: float) -> None:
        """Starts loading unless it is there or on its way."""
        digest = adapter.digest
        if digest in self._loading or digest in self._arrived or self.resident.get(digest):
            return
        self._loading[digest] = _Load(adapter, self._tier(digest), now_s)
        self._loader.request(adapter)

    def ready_in_s(self, digest: str, now_s: float) -> float:
        """Predicted time until it can be made resident; 0 when it can be now."""
        if digest in self._arrived or self.resident.get(digest):
            return 0.0
        load = self._loading.get(digest)
        tier, asked_s = (load.tier, load.asked_s) if load else (self._tier(digest), now_s)
        return max(0.0, asked_s + self._costs.load_s(tier) - now_s)

    def pages_missing(self, digest: str) -> int | None:
        """Pages that must be free to make it resident: 0 when it is, None while it is not here."""
        if self.resident.get(digest):
            return 0
        arrived = self._arrived.get(digest)
        return arrived.pages.shape[1] if arrived else None

    def size_pages(self, digest: str) -> int:
        """Pages of an adapter that is resident or has arrived."""
        resident = self.resident.get(digest)
        return len(resident.page_ids) if resident else self._arrived[digest].pages.shape[1]

    def acquire(self, digest: str) -> None:
        """Makes an arrived adapter resident if need be, and holds it. Its pages must be free."""
        if self.resident.get(digest) is None:
            installed = self.resident.install(self._arrived.pop(digest))
            assert installed is not None
        self.resident.acquire(digest)

    def drop(self, digest: str) -> None:
        """No waiting request names it any more: an arrived adapter is let go of; the host tier may
        keep it."""
        self._arrived.pop(digest, None)

    def _tier(self, digest: str) -> Tier:
        residency = self._loader.residency()
        if digest in residency.host:
            return "host"
        return "disk" if digest in residency.disk else "source"

    def _reload_s(self, digest: str, nbytes: int) -> float:
        return self._costs.reload_s(self._tier(digest), nbytes)

    def _too_large(self, digest: str, pages: int) -> PoolTooSmallError:
        return PoolTooSmallError(
            "POOL_TOO_SMALL",
            f"the adapter takes {pages} of the pool's {self._num_pages} pages, which leaves none"
            " for a sequence: start the data plane with a larger --pool-bytes",
            {"digest": digest, "pages": str(pages), "num_pages": str(self._num_pages)},
        )
