"""Bringing adapters to host memory without the step loop waiting for it.

Parsing and packing run on threads of their own that compute with one core each, as torch's thread
pool is the step loop's, and like those that read and verify files they give way to the step loop:
one that took its full share of a core would hold up every parallel region of a step. Where steps
compute on all cores, they keep a pace; elsewhere a lower priority is enough.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from chorale.fleet_tls_files import FleetTlsFiles
from dataplane.channel import Adapter
from dataplane.load_reports import AdapterLoad
from dataplane.lora.blob_source import BlobSource
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader_report import LoaderReport, recent_loads, report_of
from storage.adapter.manifest import ParsedAdapter
from storage.disk_tier import DiskTier
from storage.flight import AdapterRef
from storage.host_tier import HostTier
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.loader import LoadTimings, Residency, TieredLoader
from storage.pace import Pace
from storage.sources import SourceOptions, SourceRouter, build_router

_BUILD_THREADS = 2
_IO_THREADS = 16
# Where all cores are busy the kernel leaves such a thread some hundredths of one (Linux weighs
# niceness 15 with 36, 0 with 1024); where one is idle it has all of it.
_NICENESS = 15


class LoadResult(NamedTuple):
    """Exactly one of `adapter` and `error` is set."""

    digest: str
    adapter: HostAdapter | None
    error: Exception | None


class AdapterLoader(Protocol):
    """What the engine needs of a loader; no call blocks."""

    @property
    def host_bytes(self) -> int:
        """What host memory may hold."""
        ...

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        """Starts a load, whose result comes once. Of a digest that is being loaded it raises the
        priority, and what was speculative is so no more unless this is, too."""
        ...

    def cancel(self, digest: str) -> None:
        """Nobody wants that load's result any more; it may still come."""
        ...

    def pin(self, digest: str) -> None:
        """Host memory keeps it from now on, be it there or come later."""
        ...

    def unpin(self, digest: str) -> None: ...

    def discard(self, digest: str) -> None:
        """Host memory lets go of it, pinned or not."""
        ...

    def results(self) -> list[LoadResult]:
        """Loads that have ended since the last call."""
        ...

    def residency(self) -> Residency:
        """What host memory and disk hold."""
        ...


class ThreadedLoader:
    """Runs storage's tiers in an event loop on a thread of its own.

    sources: beside uploads, which come from the control plane at HOST:PORT with the fleet token
    and over the fleet's TLS.
    limits: of what any of them gives.
    on_result: called on that thread after each result, to wake the engine. pace: of
    its threads; None where cores are left for them.
    """

    def __init__(
        self,
        build: Callable[[ParsedAdapter], HostAdapter],
        *,
        sources: SourceOptions,
        limits: AdapterLimits = DEFAULT_LIMITS,
        control_plane: str = "",
        fleet_token: str = "",
        fleet_tls: FleetTlsFiles | None = None,
        host_bytes: int,
        disk_bytes: int,
        disk_dir: str,
        on_result: Callable[[], None],
        pace: Pace | None = None,
    ) -> None:
        self._build = build
        self._pace = pace
        self._give_way = _lower_priority if pace is None else pace.keep
        self._sources = sources
        self._limits = limits
        self._blobs = (
            BlobSource(control_plane, fleet_token, fleet_tls, limits=limits)
            if control_plane
            else None
        )
        self._router: SourceRouter | None = None
        self._host_bytes = host_bytes
        self._disk_bytes = disk_bytes
        self._disk_dir = disk_dir
        self._on_result = on_result
        self._results: queue.SimpleQueue[LoadResult] = queue.SimpleQueue()
        self._residency = Residency(frozenset(), frozenset())
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[asyncio.Task[None]] = set()
        self._tiers: TieredLoader[HostAdapter] | None = None
        self._host: HostTier[HostAdapter] = HostTier(
            host_bytes, reload_s=lambda digest, size: self._reload_s(digest, size)
        )
        self._builders: ThreadPoolExecutor | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)

    def start(self) -> None:
        """Raises: StorageError when the disk tier cannot be opened; ValueError for `sources`."""
        limits = self._limits
        disk = None
        if self._disk_dir:
            disk = DiskTier(Path(self._disk_dir), self._disk_bytes, limits=limits)
        others = {"blob": self._blobs} if self._blobs else {}
        self._router = build_router(self._sources, limits, others, disk=disk)
        self._builders = _single_core_threads(self._give_way)
        self._tiers = TieredLoader(
            self._router,
            disk,
            self._host,
            self._build_sized,
            limits=limits,
            executor=self._builders,
            on_store=self._look,
        )
        self._residency = self._tiers.residency()
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if self._builders is not None:
            self._builders.shutdown(cancel_futures=True)

    @property
    def host_bytes(self) -> int:
        return self._host_bytes

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        self._loop.call_soon_threadsafe(self._begin, adapter, priority, speculative)

    def cancel(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._cancel, digest)

    def pin(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._host.pin, digest)

    def unpin(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._host.unpin, digest)

    def discard(self, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._discard, digest)

    def results(self) -> list[LoadResult]:
        ended: list[LoadResult] = []
        while True:
            try:
                ended.append(self._results.get_nowait())
            except queue.Empty:
                return ended

    def residency(self) -> Residency:
        return self._residency

    def recent_timings(self) -> tuple[LoadTimings, ...]:
        """The last loads from disk or source, oldest first."""
        return self._tiers.recent_timings() if self._tiers is not None else ()

    def recent_loads(self) -> list[AdapterLoad]:
        """The last loads, those that failed among them, oldest first."""
        assert self._tiers is not None, "start() comes first"
        return recent_loads(self._tiers, time.perf_counter())

    def report(self) -> LoaderReport:
        """Counters of the tiers, and the loads under way."""
        assert self._tiers is not None, "start() comes first"
        return report_of(self._tiers, self._host_bytes, self._disk_bytes, time.perf_counter())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        if self._pace is not None:
            self._pace.keep_in_tasks()
        self._loop.set_default_executor(
            ThreadPoolExecutor(
                _IO_THREADS, thread_name_prefix="adapter-io", initializer=self._give_way
            )
        )
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.close()

    async def _close(self) -> None:
        tasks = [*self._tasks.values(), *self._cancelled]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self._tiers is not None
        await self._tiers.aclose()
        if self._router is not None:
            await self._router.aclose()
        if self._blobs is not None:
            await self._blobs.aclose()

    def _begin(self, adapter: Adapter, priority: float, speculative: bool) -> None:
        assert self._tiers is not None
        if adapter.digest in self._tasks:
            self._tiers.raise_priority(adapter.digest, priority, speculative=speculative)
            return
        task = self._loop.create_task(
            self._load(adapter, priority, speculative), name=f"load-{adapter.digest[:12]}"
        )
        self._tasks[adapter.digest] = task

    def _cancel(self, digest: str) -> None:
        task = self._tasks.pop(digest, None)
        if task is not None:
            self._cancelled.add(task)
            task.add_done_callback(self._cancelled.discard)
            task.cancel()

    def _discard(self, digest: str) -> None:
        self._host.unpin(digest)
        self._host.discard(digest)
        self._look()

    async def _load(self, adapter: Adapter, priority: float, speculative: bool) -> None:
        tiers = self._tiers
        assert tiers is not None
        ref = AdapterRef(adapter.digest, adapter.source, adapter.token)
        try:
            loaded = await tiers.load(ref, priority=priority, speculative=speculative)
            result = LoadResult(adapter.digest, loaded, None)
        except Exception as error:
            result = LoadResult(adapter.digest, None, error)
        # No longer in flight before its result is out: a request that comes now is a new load.
        self._tasks.pop(adapter.digest, None)
        self._look()
        self._results.put(result)
        self._on_result()

    def _look(self) -> None:
        """The engine's thread reads the tiers' contents as of the last change."""
        assert self._tiers is not None
        self._residency = self._tiers.residency()

    def _reload_s(self, digest: str, size_bytes: int) -> float:
        assert self._tiers is not None
        return self._tiers.reload_s(digest, size_bytes)

    def _build_sized(self, parsed: ParsedAdapter) -> tuple[HostAdapter, int]:
        adapter = self._build(parsed)
        return adapter, adapter.host_bytes


def _single_core_threads(give_way: Callable[[], None]) -> ThreadPoolExecutor:
    """Threads in which torch uses one core. torch keeps the number by thread, but a thread takes
    over what was set last anywhere when it first asks: so all of them start and ask now, and then
    it is set back."""
    num_threads = torch.get_num_threads()
    all_started = threading.Barrier(_BUILD_THREADS + 1)

    def begin() -> None:
        give_way()
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_started.wait()

    executor = ThreadPoolExecutor(_BUILD_THREADS, thread_name_prefix="adapter-build")
    for _ in range(_BUILD_THREADS):
        executor.submit(begin)
    all_started.wait()
    torch.set_num_threads(num_threads)
    return executor


def _lower_priority() -> None:
    """Of this thread."""
    if sys.platform == "linux":  # elsewhere niceness is the process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
