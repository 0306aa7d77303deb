"""Bringing adapters nearer before anybody asks, within bounds, and what came of it.

Prefetches load with the lowest priority, few at a time. What they brought and nobody used yet is
bounded to a share of its tier, and displaces only what is worth less. Pinned adapters are exempt
from both, as an operator has said that they will be used; where one finds no room, or cannot be
loaded, it is tried again (pins.py).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from dataplane.channel import Adapter
from dataplane.lora.layout import HostAdapter
from dataplane.lora.pins import HOST_FULL, POOL_FULL, QUEUE_FULL, WaitingPins

if TYPE_CHECKING:
    from dataplane.lora.loader import AdapterLoader
    from dataplane.lora.resident import ResidentAdapters

PrefetchTier = Literal["host", "pool"]

_PRIORITY = -1000.0  # below that of any request
_MAX_LOADING = 2
_MAX_QUEUED = 1024
_UNUSED_SHARE = 4  # at most one part in so many of a tier is prefetched and not used yet
_GUESS = 0.5  # a prefetch counts as so much of a use, for what the adapter is worth


@dataclass
class PrefetchCounters:
    """Since the start. hits: prefetched adapters that a request then found there. late: requests
    that came while the prefetch was still under way; late_s: how long those then waited for it.
    wasted_bytes: evicted before any use. failed: the load failed. refused: the queue was full, or
    nothing of less worth could make room in the pool. asked: all that were asked for, pins too."""

    asked: int = 0
    hits: int = 0
    late: int = 0
    late_s: float = 0.0
    wasted_bytes: int = 0
    failed: int = 0
    refused: int = 0


class _Wish(NamedTuple):
    adapter: Adapter
    tier: PrefetchTier
    pinned: bool


class _Unused(NamedTuple):
    tier: PrefetchTier
    nbytes: int


class Prefetcher:
    def __init__(
        self, loader: AdapterLoader, resident: ResidentAdapters, num_pool_pages: int
    ) -> None:
        self._loader = loader
        self._resident = resident
        self._num_pool_pages = num_pool_pages
        self._queue: OrderedDict[str, _Wish] = OrderedDict()
        self._loading: dict[str, _Wish] = {}
        self._unused: dict[str, _Unused] = {}
        self._late_since_s: dict[str, float] = {}
        self.waiting_pins = WaitingPins()
        self.counters = PrefetchCounters()

    @property
    def is_busy(self) -> bool:
        """Results are to come, or to be asked for, be it later."""
        return bool(self._loading or self._queue or self.waiting_pins)

    def is_loading(self, digest: str) -> bool:
        return digest in self._loading

    def ask(self, adapter: Adapter, tier: PrefetchTier, now_s: float, *, pinned: bool) -> None:
        """Queues a prefetch, unless the adapter is there."""
        self.counters.asked += 1
        self._queue_up(_Wish(adapter, tier, pinned), now_s)

    def pin(self, adapter: Adapter, tier: PrefetchTier, now_s: float) -> None:
        """Brings one that loader and resident adapters were told to keep, and goes on trying."""
        self.unpin(adapter.digest)
        resident = self._resident.get(adapter.digest)
        if tier == "pool" and resident is not None and not resident.pinned:
            num_pages = len(resident.page_ids)
            self.counters.asked += 1
            self.waiting_pins.wait(adapter, tier, POOL_FULL, now_s, num_pages)
        else:
            self.ask(adapter, tier, now_s, pinned=True)

    def unpin(self, digest: str) -> None:
        """A pin that waits for room waits no more; one on its way is a mere prefetch now."""
        self.waiting_pins.drop(digest)
        for wishes in (self._queue, self._loading):
            if digest in wishes:
                wishes[digest] = wishes[digest]._replace(pinned=False)

    def _queue_up(self, wish: _Wish, now_s: float) -> None:
        adapter, tier, pinned = wish
        digest = adapter.digest
        known = self._queue.get(digest) or self._loading.get(digest)
        if known is not None:
            wish = _Wish(
                adapter,
                "pool" if "pool" in (tier, known.tier) else "host",
                pinned or known.pinned,
            )
            (self._queue if digest in self._queue else self._loading)[digest] = wish
        elif self._resident.get(digest) or (tier == "host" and self._is_in_host(digest)):
            return
        elif len(self._queue) >= _MAX_QUEUED:
            self.counters.refused += 1
            if pinned:
                self.waiting_pins.wait(adapter, tier, QUEUE_FULL, now_s)
        else:
            self._queue[digest] = wish
            self.go_on(now_s)

    def forget(self, digest: str) -> None:
        """It is to be unloaded: a prefetch that has not begun does not begin."""
        self._queue.pop(digest, None)
        self.unpin(digest)

    def used(self, digest: str, now_s: float) -> None:
        """A request names it."""
        if self._unused.pop(digest, None):
            self.counters.hits += 1
        elif digest in self._loading:
            self.counters.late += 1
            self._late_since_s.setdefault(digest, now_s)
        elif digest in self._queue:
            # The request loads it now.
            self.counters.late += 1
            if not self._queue[digest].pinned:
                del self._queue[digest]

    def ended(
        self, digest: str, host: HostAdapter | None, error: Exception | None, now_s: float
    ) -> None:
        """A load of that digest has ended, whoever asked for it."""
        wish = self._loading.pop(digest, None)
        late_since_s = self._late_since_s.pop(digest, None)
        if late_since_s is not None:
            self.counters.late_s += now_s - late_since_s
        if wish is None:
            return
        if host is None:
            self.counters.failed += 1
            if wish.pinned:
                reason: str = getattr(error, "reason", "INTERNAL")
                self.waiting_pins.wait(wish.adapter, wish.tier, reason, now_s)
            return
        if wish.tier == "pool" and not self._place(wish, host, now_s):
            self.counters.refused += 1
            if wish.pinned:
                num_pages = host.pages.shape[1]
                self.waiting_pins.wait(wish.adapter, "pool", POOL_FULL, now_s, num_pages)
        elif wish.pinned and wish.tier == "host" and not self._is_in_host(digest):
            self.counters.refused += 1
            self.waiting_pins.wait(wish.adapter, "host", HOST_FULL, now_s)
        elif wish.pinned:
            self.waiting_pins.drop(digest)
        if late_since_s is None:
            tier: PrefetchTier = "pool" if self._resident.get(digest) else "host"
            self._unused[digest] = _Unused(tier, host.nbytes)

    def go_on(self, now_s: float) -> None:
        """Starts what the bounds allow, and tries pins again that are due."""
        if self.waiting_pins:
            self._try_pins(now_s)
        if not self._queue or len(self._loading) >= _MAX_LOADING:
            return
        self._count_wasted()
        for digest, wish in list(self._queue.items()):
            if len(self._loading) >= _MAX_LOADING:
                return
            if wish.pinned or self._has_budget(wish.tier):
                del self._queue[digest]
                self._loading[digest] = wish
                self._loader.request(wish.adapter, priority=_PRIORITY, speculative=not wish.pinned)

    def report(self) -> PrefetchCounters:
        """The counters, with what was wasted until now."""
        self._count_wasted()
        return self.counters

    def _try_pins(self, now_s: float) -> None:
        for pin in self.waiting_pins.due(now_s):
            digest = pin.adapter.digest
            resident = self._resident.get(digest)
            if pin.tier == "pool" and resident is not None:  # a request has brought it meanwhile
                self._resident.pin(digest)
                if resident.pinned:
                    self.waiting_pins.drop(digest)
            elif pin.tier == "host" and self._is_in_host(digest):
                self.waiting_pins.drop(digest)
            elif self._resident.has_room_to_pin(pin.num_pages):
                self.waiting_pins.tried(digest, now_s)
                self._queue_up(_Wish(pin.adapter, pin.tier, True), now_s)

    def _place(self, wish: _Wish, host: HostAdapter, now_s: float) -> bool:
        resident = self._resident.get(host.digest)
        if resident is not None:
            return not wish.pinned or resident.pinned
        num_pages = host.pages.shape[1]
        if wish.pinned:
            return self._resident.install_pinned(host)
        if num_pages > self._num_pool_pages // _UNUSED_SHARE:
            return False
        self._resident.expected(host.digest, now_s, _GUESS)
        return self._resident.install_if_worth(host)

    def _has_budget(self, tier: PrefetchTier) -> bool:
        held = sum(each.nbytes for each in self._unused.values() if each.tier == tier)
        total = self._resident.pool_bytes if tier == "pool" else self._loader.host_bytes
        return held < total // _UNUSED_SHARE

    def _count_wasted(self) -> None:
        if not self._unused:
            return
        in_host = self._loader.residency().host
        for digest, unused in list(self._unused.items()):
            if digest not in in_host and not self._resident.get(digest):
                del self._unused[digest]
                self.counters.wasted_bytes += unused.nbytes

    def _is_in_host(self, digest: str) -> bool:
        return digest in self._loader.residency().host
