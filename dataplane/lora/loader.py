"""Bringing adapters to host memory without the step loop waiting for it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from dataplane.channel import Adapter
from dataplane.lora.blob_source import BlobSource
from dataplane.lora.layout import HostAdapter
from storage.adapter.manifest import ParsedAdapter
from storage.disk_tier import DiskTier
from storage.host_tier import HostTier
from storage.loader import AdapterRef, LoadTimings, Residency, TieredLoader
from storage.sources import SourceOptions, SourceRouter, build_router

log = logging.getLogger(__name__)


class LoadResult(NamedTuple):
    """Exactly one of `adapter` and `error` is set."""

    digest: str
    adapter: HostAdapter | None
    error: Exception | None


class AdapterLoader(Protocol):
    """What the engine needs of a loader; no call blocks."""

    def request(self, adapter: Adapter) -> None:
        """Starts a load; its result comes once. At most one request per digest at a time."""
        ...

    def results(self) -> list[LoadResult]:
        """Loads that have ended since the last call."""
        ...

    def residency(self) -> Residency:
        """What host memory and disk hold."""
        ...


class ThreadedLoader:
    """Runs storage's tiers in an event loop on a thread of its own.

    sources: beside uploads, which come from the control plane at HOST:PORT with the fleet token.
    on_result: called on that thread after each result, to wake the engine.
    """

    def __init__(
        self,
        build: Callable[[ParsedAdapter], HostAdapter],
        *,
        sources: SourceOptions,
        control_plane: str = "",
        fleet_token: str = "",
        host_bytes: int,
        disk_bytes: int,
        disk_dir: str,
        on_result: Callable[[], None],
    ) -> None:
        self._build = build
        self._sources = sources
        self._blobs = BlobSource(control_plane, fleet_token) if control_plane else None
        self._router: SourceRouter | None = None
        self._host_bytes = host_bytes
        self._disk_bytes = disk_bytes
        self._disk_dir = disk_dir
        self._on_result = on_result
        self._results: queue.SimpleQueue[LoadResult] = queue.SimpleQueue()
        self._residency = Residency(frozenset(), frozenset())
        self._tasks: set[asyncio.Task[None]] = set()
        self._tiers: TieredLoader[HostAdapter] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="adapter-loader", daemon=True)

    def start(self) -> None:
        """Raises: StorageError when the disk tier cannot be opened; ValueError for `sources`."""
        disk = DiskTier(Path(self._disk_dir), self._disk_bytes) if self._disk_dir else None
        others = {"blob": self._blobs} if self._blobs else {}
        self._router = build_router(self._sources, others=others)
        self._tiers = TieredLoader(
            self._router,
            disk,
            HostTier(self._host_bytes),
            self._build_sized,
        )
        self._residency = self._tiers.residency()
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def request(self, adapter: Adapter) -> None:
        self._loop.call_soon_threadsafe(self._begin, adapter)

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

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._close())
        finally:
            self._loop.close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self._tiers is not None
        await self._tiers.aclose()
        if self._router is not None:
            await self._router.aclose()
        if self._blobs is not None:
            await self._blobs.aclose()

    def _begin(self, adapter: Adapter) -> None:
        task = self._loop.create_task(self._load(adapter), name=f"load-{adapter.digest[:12]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, adapter: Adapter) -> None:
        tiers = self._tiers
        assert tiers is not None
        try:
            loaded = await tiers.load(AdapterRef(adapter.digest, adapter.source, adapter.token))
            result = LoadResult(adapter.digest, loaded, None)
        except Exception as error:
            result = LoadResult(adapter.digest, None, error)
        self._residency = tiers.residency()
        self._results.put(result)
        self._on_result()

    def _build_sized(self, parsed: ParsedAdapter) -> tuple[HostAdapter, int]:
        adapter = self._build(parsed)
        return adapter, adapter.nbytes
