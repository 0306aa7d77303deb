"""Adapters through the tiers: host memory, then disk, then their source."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from storage.adapter.manifest import ParsedAdapter, parse_adapter
from storage.disk_tier import DiskTier, DiskTierStats
from storage.errors import (
    DigestMismatchError,
    LoaderClosedError,
    StorageError,
    TierError,
    excerpt,
)
from storage.files import AdapterFiles
from storage.flight import AdapterRef, Flight
from storage.host_tier import HostTier, HostTierStats
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.load_history import LoadHistory, LoadUnderWay, origin_kind
from storage.locks import Claim
from storage.reload_costs import ReloadCosts
from storage.slots import PrioritySlots
from storage.sources import Access, OriginSlots, Source

T = TypeVar("T")
_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEPT_TIMINGS = 256
_MAX_PENDING_WRITES = 4
_WRITE_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class LoadTimings:
    """One completed load. tier: "disk" or "source". Seconds of wall time: queue_s waiting for its
    turn, parse_s parsing with the checks of all values, build_s making the pages, read_s the rest:
    reading, and disk verification as far as it outlasts those two; all but queue_s include waits
    for a thread. origin: as LoadCount has it. ended_s: on the loader's clock."""

    digest: str
    tier: str
    size_bytes: int
    read_s: float
    parse_s: float
    build_s: float
    queue_s: float = 0.0
    origin: str = ""
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Residency:
    host: frozenset[str]
    disk: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    value: T
    size_bytes: int
    parse_s: float
    build_s: float


class TieredLoader(Generic[T]):
    """Loads each digest at most once at a time, whatever the number of callers.

    Use from one event loop. Reading, parsing and `build` run in threads; only dictionary work is
    done on the loop. Failures are not remembered: the next call tries again. `aclose` before
    dropping it.
    """

    def __init__(
        self,
        router: Source,
        disk: DiskTier | None,
        host: HostTier[T],
        build: Callable[[ParsedAdapter], tuple[T, int]],
        *,
        limits: AdapterLimits = DEFAULT_LIMITS,
        max_concurrent_loads: int = 16,
        max_claim_wait_s: float = 30.0,
        executor: Executor | None = None,
        on_store: Callable[[], None] | None = None,
    ) -> None:
        """build: makes the value and says its size in bytes; called in a thread, may raise.
        max_concurrent_loads: fetches from one origin, and reads with builds, at once.
        max_claim_wait_s: how long another process's fetch of the same adapter is waited for.
        executor: whose threads parse and build; None: the event loop's.
        on_store: called on the loop when disk has taken in another adapter."""
        self._router = router
        self._disk = disk
        self._host = host
        self._build = build
        self._limits = limits
        self._on_store = on_store
        self._clock = time.perf_counter
        self._max_claim_wait_s = max_claim_wait_s
        # Apart, so that sources that hang do not hold up what the disk or another source has.
        self._fetch_slots = OriginSlots(max_concurrent_loads)
        self._work_slots = PrioritySlots(max_concurrent_loads)
        self._executor = executor
        self._costs = ReloadCosts()
        self._writes: set[asyncio.Task[None]] = set()
        self._flights: dict[str, Flight[T]] = {}
        self._recent: deque[LoadTimings] = deque(maxlen=_KEPT_TIMINGS)
        self.history = LoadHistory(self._clock)
        self._closed = False

    async def load(self, ref: AdapterRef, *, priority: float = 0.0, speculative: bool = False) -> T:
        """The built adapter, from the nearest tier that has it.

        priority: whose turn it is when loads queue; of several callers the highest counts.
        speculative: nobody needs it yet, so the host tier gives up nothing of more worth for it.
        Cancelling one caller leaves the others waiting; the last one's cancellation stops the load.
        Raises: StorageError (DigestMismatchError when the source no longer holds this content), or
        whatever `build` raises.
        """
        if not _DIGEST.fullmatch(ref.digest):
            raise DigestMismatchError(
                f"digest {excerpt(ref.digest)} is not 64 lower-case hex characters"
            )
        value = self._host.peek(ref.digest) if speculative else self._host.get(ref.digest)
        if value is not None:
            return value
        while True:
            flight = self._join(ref, priority)
            flight.speculative = flight.speculative and speculative
            try:
                return await self._wait(ref.digest, flight)
            except StorageError:
                # It may be the other caller's source that failed, or its token: ours is still
                # worth a try.
                if flight.ref == ref:
                    raise

    def raise_priority(self, digest: str, priority: float, *, speculative: bool) -> None:
        """As another call of `load` would; nothing when that digest is not being loaded."""
        flight = self._flights.get(digest)
        if flight is not None:
            flight.priority = max(flight.priority, priority)
            flight.speculative = flight.speculative and speculative

    def reload_s(self, digest: str, size_bytes: int) -> float:
        """What getting an adapter back costs that host memory gives up."""
        on_disk = self._disk is not None and digest in self._disk
        return self._costs.seconds("disk" if on_disk else "source", size_bytes)

    def residency(self) -> Residency:
        disk = self._disk.digests() if self._disk is not None else frozenset[str]()
        return Residency(host=self._host.digests(), disk=disk)

    def tier_stats(self) -> tuple[HostTierStats, DiskTierStats | None]:
        """Of host memory and, where there is one, disk. From any thread."""
        return self._host.stats(), self._disk.stats() if self._disk is not None else None

    def recent_timings(self) -> tuple[LoadTimings, ...]:
        """The last loads from disk or source, oldest first."""
        return tuple(self._recent)

    def under_way(self) -> list[LoadUnderWay]:
        """The loads that are going on, oldest first. From any thread."""
        return [
            LoadUnderWay(
                digest=flight.ref.digest,
                origin=origin_kind(flight.ref.source),
                state=flight.state,
                received_bytes=flight.transfer.received_bytes,
                total_bytes=flight.transfer.total_bytes,
                bytes_per_s=flight.transfer.bytes_per_s,
                began_s=flight.began_s,
            )
            for flight in list(self._flights.values())
        ]

    async def flush(self) -> None:
        """Wait until what was loaded so far is on disk."""
        await asyncio.gather(*self._writes)

    async def aclose(self) -> None:
        """Cancel the loads under way (their callers see LoaderClosedError), end disk writes."""
        self._closed = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.flush()

    def _join(self, ref: AdapterRef, priority: float) -> Flight[T]:
        flight = self._flights.get(ref.digest)
        if flight is not None:
            flight.priority = max(flight.priority, priority)
            return flight
        if self._closed:
            raise LoaderClosedError("the loader is closed")
        flight = self._flights[ref.digest] = Flight[T](ref, priority, self._clock)
        task = asyncio.create_task(self._load(ref, flight), name=f"load-{ref.digest[:12]}")
        flight.task = task
        task.add_done_callback(lambda _: self._land(ref.digest, flight))
        return flight

    def _land(self, digest: str, flight: Flight[T]) -> None:
        if self._flights.get(digest) is flight:
            del self._flights[digest]
        if flight.task.cancelled():
            self.history.cancelled(origin_kind(flight.ref.source))
        # Read in any case, as all who waited may have been cancelled.
        elif (error := flight.task.exception()) is not None:
            self.history.failed(digest, origin_kind(flight.ref.source), error)

    async def _wait(self, digest: str, flight: Flight[T]) -> T:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._closed and current is not None and not current.cancelling():
                raise LoaderClosedError("the loader was closed during the load") from None
            raise
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                # Out of the table at once, so that a new caller starts afresh.
                if self._flights.get(digest) is flight:
                    del self._flights[digest]
                flight.task.cancel()

    async def _load(self, ref: AdapterRef, flight: Flight[T]) -> T:
        found = await self._from_disk(ref, flight)
        if found is not None:
            return found[0]
        asked = self._clock()
        claim = None
        try:
            if self._disk is not None:
                claim = await self._disk.claim(ref.digest, max_wait_s=self._max_claim_wait_s)
                # Another process may have put it there.
                found = await self._from_disk(ref, flight, again=True)
                if found is not None:
                    return found[0]
            async with self._fetch_slots.hold(ref.source, lambda: flight.priority):
                started = self._clock()
                queue_s = started - asked
                flight.state = "fetching"
                access = Access(ref.token, flight.transfer.note)
                files = await self._router.fetch(ref.source, access)
                async with self._work_slots.at(lambda: flight.priority):
                    made = await self._make(ref, flight, files, "source")
                    value = self._ended(ref, flight, made, "source", started, queue_s)
                await self._begin_write(ref.digest, files, claim)
                claim = None  # the write's now
                return value
        finally:
            if claim is not None:
                claim.release()

    async def _from_disk(
        self, ref: AdapterRef, flight: Flight[T], *, again: bool = False
    ) -> tuple[T] | None:
        if self._disk is None:
            return None
        asked = self._clock()
        async with self._work_slots.at(lambda: flight.priority):
            started = self._clock()

            async def make(files: AdapterFiles) -> _Made[T]:
                return await self._make(ref, flight, files, "disk")

            made = await self._disk.get_and(make, ref.digest, again=again)
            if made is None:
                return None
            return (self._ended(ref, flight, made, "disk", started, started - asked),)

    async def _make(
        self, ref: AdapterRef, flight: Flight[T], files: AdapterFiles, tier: str
    ) -> _Made[T]:
        loop = asyncio.get_running_loop()
        flight.state = "building"
        began = self._clock()
        parsed = await loop.run_in_executor(self._executor, self._parse, files, ref, tier)
        parsed_at = self._clock()
        value, size_bytes = await loop.run_in_executor(self._executor, self._build, parsed)
        return _Made(value, size_bytes, parsed_at - began, self._clock() - parsed_at)

    def _ended(
        self,
        ref: AdapterRef,
        flight: Flight[T],
        made: _Made[T],
        tier: str,
        started: float,
        queue_s: float,
    ) -> T:
        now = self._clock()
        timings = LoadTimings(
            digest=ref.digest,
            tier=tier,
            size_bytes=made.size_bytes,
            read_s=now - started - made.parse_s - made.build_s,
            parse_s=made.parse_s,
            build_s=made.build_s,
            queue_s=queue_s,
            origin="disk" if tier == "disk" else origin_kind(ref.source),
            ended_s=now,
        )
        self._costs.observe(tier, now - started, made.size_bytes)
        self._keep(ref.digest, made.value, made.size_bytes, flight.speculative)
        self._recent.append(timings)
        self.history.ended(
            timings.origin,
            size_bytes=made.size_bytes,
            queue_s=queue_s,
            read_s=timings.read_s,
            parse_s=timings.parse_s,
            build_s=timings.build_s,
        )
        return made.value

    async def _begin_write(self, digest: str, files: AdapterFiles, claim: Claim | None) -> None:
        """Store behind the caller's back. A disk that lags is waited for a moment, lest files pile
        up in memory; one that hangs goes without."""
        if self._disk is None or claim is None:
            return
        until_s = time.monotonic() + _WRITE_PATIENCE_S
        # Others wait, too, and may be quicker to take the place of a write that has ended.
        while (
            len(self._writes) >= _MAX_PENDING_WRITES and (left_s := until_s - time.monotonic()) > 0
        ):
            await asyncio.wait(self._writes, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if len(self._writes) >= _MAX_PENDING_WRITES:
            _log.warning("adapter %s is served without disk cache: the disk lags", digest)
            claim.release()
            return
        task = asyncio.create_task(self._store(self._disk, digest, files, claim))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    def _parse(self, files: AdapterFiles, ref: AdapterRef, tier: str) -> ParsedAdapter:
        parsed = parse_adapter(
            files.config,
            files.weights,
            limits=self._limits,
            known_digest=ref.digest if tier == "disk" else None,
        )
        found = parsed.manifest.digest
        if found != ref.digest:
            raise DigestMismatchError(
                f"source {excerpt(ref.source)} changed since registration: it holds {found}, "
                f"{ref.digest} was registered; register it as a new version",
                metadata={"expected": ref.digest, "found": found},
            )
        return parsed

    def _keep(self, digest: str, value: T, size_bytes: int, speculative: bool) -> None:
        try:
            self._host.put(digest, value, size_bytes, speculative=speculative)
        except TierError as problem:
            _log.warning("adapter %s is served without host cache: %s", digest, problem)

    async def _store(self, disk: DiskTier, digest: str, files: AdapterFiles, claim: Claim) -> None:
        try:
            await disk.put(digest, files)
        except TierError as problem:
            _log.warning("adapter %s is served without disk cache: %s", digest, problem)
        else:
            if self._on_store is not None:
                self._on_store()
        finally:
            claim.release()
