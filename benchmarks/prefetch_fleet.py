"""A data plane's host memory and loads in simulated time."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.fleet.counters import Counters, TierCounters
from controlplane.fleet.model import Load
from controlplane.prefetch.model import Plane
from storage.host_tier import HostTier

MAX_RUNNING = 8
_SERVICE_S = 3.0  # that a request takes
_EARLY_S = 60.0
_MAX_LOADING = 2  # prefetches at once, as in dataplane/lora/prefetch.py
_UNUSED_SHARE = 4  # likewise
_COSTS = {"disk": (0.005, 1e9), "source": (0.1, 2e8)}


class Tier(Protocol):
    """What is used of HostTier."""

    def get(self, digest: str) -> int | None: ...
    def peek(self, digest: str) -> int | None: ...
    def put(
        self, digest: str, value: int, size_bytes: int, *, speculative: bool = False
    ) -> bool: ...
    def digests(self) -> frozenset[str]: ...


class FarthestTier:
    """Gives up what is used again the latest, and keeps nothing for it that is used later still."""

    def __init__(self, max_bytes: int, next_use: Callable[[str], float]) -> None:
        self._max_bytes = max_bytes
        self._next_use = next_use
        self._sizes: dict[str, int] = {}

    def get(self, digest: str) -> int | None:
        return self._sizes.get(digest)

    peek = get

    def put(self, digest: str, value: int, size_bytes: int, *, speculative: bool = False) -> bool:
        mine = self._next_use(digest)
        excess = sum(self._sizes.values()) + size_bytes - self._max_bytes
        victims: list[str] = []
        for victim in sorted(self._sizes, key=self._next_use, reverse=True):
            if excess <= 0:
                break
            if self._next_use(victim) <= mine:
                return False
            victims.append(victim)
            excess -= self._sizes[victim]
        if excess > 0:
            return False
        for victim in victims:
            del self._sizes[victim]
        self._sizes[digest] = size_bytes
        return True

    def digests(self) -> frozenset[str]:
        return frozenset(self._sizes)


def next_uses(times_s: Sequence[float]) -> Callable[[float], float]:
    """Of one adapter: from now to the time of its next request."""

    def find(now_s: float) -> float:
        at = bisect_right(times_s, now_s)
        return times_s[at] if at < len(times_s) else float("inf")

    return find


@dataclass
class Tally:
    """found: requests whose adapter was in host memory; early, early_found: of these, on a data
    plane that was started again less than a minute ago. wait_s: of all for their adapters.
    wasted_bytes: brought by predictions, and given up or refused a place before any use."""

    requests: int = 0
    found: int = 0
    early: int = 0
    early_found: int = 0
    wait_s: float = 0.0
    loaded_bytes: int = 0
    wasted_bytes: int = 0


@dataclass
class SimulatedPlane:
    """One data plane. Its `report` is as of the last heartbeat."""

    data_plane_id: str
    max_bytes: int
    sizes: dict[str, int]
    tally: Tally
    make_tier: Callable[[Callable[[str, int], float]], Tier]
    tier: Tier = field(init=False)
    disk: set[str] = field(default_factory=set[str])
    joined_s: float = 0.0
    debt: tuple[float, float] = (0.0, 0.0)
    placed: int = 0
    report: tuple[Load, Counters, frozenset[str], frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        self._begin()

    def restart(self, now_s: float) -> None:
        """Memory is lost, disk is not."""
        self.joined_s = now_s
        self._count_wasted(everything=True)
        self._begin()

    def ask(self, digests: Sequence[str]) -> None:
        """To prefetch."""
        for digest in digests:
            if self.tier.peek(digest) is None and digest not in self._loading:
                self._queue[digest] = None

    def ask_only(self, digests: Sequence[str]) -> None:
        self._queue.clear()
        self.ask(digests)

    def request(self, digest: str, now_s: float) -> None:
        self.advance(now_s)
        self.placed += 1
        self.tally.requests += 1
        heapq.heappush(self._running, now_s + _SERVICE_S)
        self._unused.pop(digest, None)
        self._queue.pop(digest, None)
        early = 0 < self.joined_s >= now_s - _EARLY_S
        self.tally.early += early
        if self.tier.get(digest) is not None:
            self.tally.found += 1
            self.tally.early_found += early
            return
        if digest not in self._loading:
            self._load(digest, now_s)
        self._wanted.add(digest)
        self.tally.wait_s += self._loading[digest] - now_s

    def advance(self, now_s: float) -> None:
        """What was loaded by then arrives; prefetches that may start do."""
        while self._loading:
            digest = min(self._loading, key=lambda each: (self._loading[each], each))
            done_s = self._loading[digest]
            if done_s > now_s:
                break
            del self._loading[digest]
            self._arrive(digest)
            self._start(done_s)
        self._start(now_s)
        while self._running and self._running[0] <= now_s:
            heapq.heappop(self._running)

    def heartbeat(self, now_s: float) -> None:
        self.advance(now_s)
        self._count_wasted()
        self.placed = 0
        held = self.tier.digests()
        load = Load(num_running=len(self._running), max_running=MAX_RUNNING)
        size = sum(self.sizes[each] for each in held)
        tiers = [TierCounters("host", len(held), size, self.max_bytes, 0, 0, 0)]
        counters = Counters(num_loading=len(self._loading), tiers=tiers)
        self.report = load, counters, held, frozenset(self.disk) - held

    def seen(self, now_s: float, budget_bytes_per_s: float, base_model: str) -> Plane:
        """As the control plane sees it."""
        load, counters, host, disk = self.report
        held = {f"{each}:{base_model}": "disk" for each in disk}
        held |= {f"{each}:{base_model}": "host" for each in host}
        debt, since_s = self.debt
        return Plane(
            data_plane_id=self.data_plane_id,
            base_model=base_model,
            load=load,
            counters=counters,
            held=held,
            num_placed=self.placed,
            age_s=now_s - self.joined_s,
            debt_bytes=max(0.0, debt - (now_s - since_s) * budget_bytes_per_s),
        )

    def held_as(self, digest: str) -> str:
        """The tier, as of the last heartbeat."""
        _, _, host, disk = self.report
        return "host" if digest in host else "disk" if digest in disk else ""

    def finish(self) -> None:
        self._count_wasted()

    def _begin(self) -> None:
        self.tier = self.make_tier(self._reload_s)
        self._loading: dict[str, float] = {}
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._unused: dict[str, int] = {}
        self._prefetching: set[str] = set()
        self._wanted: set[str] = set()
        self._running: list[float] = []
        self.report = Load(max_running=MAX_RUNNING), Counters(), frozenset(), frozenset()

    def _reload_s(self, digest: str, size_bytes: int) -> float:
        fixed_s, bytes_per_s = _COSTS["disk" if digest in self.disk else "source"]
        return fixed_s + size_bytes / bytes_per_s

    def _load(self, digest: str, now_s: float) -> None:
        size = self.sizes[digest]
        self.tally.loaded_bytes += size
        self._loading[digest] = now_s + self._reload_s(digest, size)

    def _start(self, now_s: float) -> None:
        while self._queue and len(self._prefetching) < _MAX_LOADING:
            if sum(self._unused.values()) >= self.max_bytes // _UNUSED_SHARE:
                return
            digest, _ = self._queue.popitem(last=False)
            if self.tier.peek(digest) is None and digest not in self._loading:
                self._prefetching.add(digest)
                self._load(digest, now_s)

    def _arrive(self, digest: str) -> None:
        size, wanted = self.sizes[digest], digest in self._wanted
        self.disk.add(digest)
        kept = self.tier.put(digest, 1, size, speculative=not wanted)
        if digest in self._prefetching and not wanted:
            if kept:
                self._unused[digest] = size
            else:
                self.tally.wasted_bytes += size
        self._prefetching.discard(digest)
        self._wanted.discard(digest)

    def _count_wasted(self, *, everything: bool = False) -> None:
        held = self.tier.digests()
        for digest in [each for each in self._unused if everything or each not in held]:
            self.tally.wasted_bytes += self._unused.pop(digest)


def host_tier(max_bytes: int) -> Callable[[Callable[[str, int], float]], Tier]:
    """The product's."""
    return lambda reload_s: HostTier[int](max_bytes, reload_s=reload_s)
