"""Merges, built where they are wanted: `merge:STRATEGY?...` (storage.merge.recipe)."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace

from storage.adapter.manifest import ParsedAdapter, parse_adapter
from storage.disk_tier import DiskTier
from storage.errors import (
    AdapterTooLargeError,
    DigestMismatchError,
    LoaderClosedError,
    StorageError,
    TierError,
)
from storage.files import AdapterFiles
from storage.limits import AdapterLimits
from storage.merge.combine import merged_files
from storage.merge.recipe import Component, Recipe, parse_recipe
from storage.sources.access import ANYBODY, Access
from storage.sources.places import Places
from storage.sources.source import Source

_log = logging.getLogger(__name__)
_MAX_AT_WORK = 2
_MAX_QUICK = 2
_MAX_SLOW = 2
_PATIENCE_S = 60.0


class MergeSource:
    """Reads components from disk or their own source, each compared with its digest, and combines
    them in a thread, two merges at once; four have components in memory, two of them for longer
    than a minute where others wait. Takes no token: components with one are not merged.

    sources: of components. disk: where components are looked for and kept; None: nowhere.
    """

    def __init__(self, sources: Source, disk: DiskTier | None, limits: AdapterLimits) -> None:
        self._sources = sources
        self._disk = disk
        self._limits = limits
        self._work = asyncio.Semaphore(_MAX_AT_WORK)
        # Whatever their origins: components of a few may be put together in any number of ways.
        self._memory = Places(_MAX_QUICK, _MAX_SLOW, _PATIENCE_S)

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: MergeRefusedError, and of components SourceError, AdapterFormatError,
        DigestMismatchError, which name the component."""
        recipe = parse_recipe(uri)
        async with self._memory.hold() as place:
            found = await place.wait_for(self._components(recipe, access))
            async with self._work:
                return await _combined(recipe, found, self._limits)

    async def _components(self, recipe: Recipe, access: Access) -> list[ParsedAdapter]:
        found: list[ParsedAdapter] = []
        num_bytes = 0
        for component in recipe.components:
            try:
                parsed = await self._component(component, access)
            except StorageError as error:
                raise _named(error, component) from None
            found.append(parsed)
            num_bytes += len(parsed.weights)
            if num_bytes > self._limits.max_weights_bytes:
                raise _too_large(self._limits.max_weights_bytes)
        return found

    async def _component(self, component: Component, access: Access) -> ParsedAdapter:
        digest, disk = component.digest, self._disk
        files = await disk.get(digest) if disk is not None else None
        if files is not None:
            return await self._parsed(files, known_digest=digest)
        files = await self._sources.fetch(component.source, replace(access, token=""))
        parsed = await self._parsed(files)
        if parsed.manifest.digest != digest:
            raise DigestMismatchError(
                f"its source holds {parsed.manifest.digest} now, and {digest} was merged; merge "
                "again to make a new version",
                metadata={"expected": digest, "found": parsed.manifest.digest},
            )
        if disk is not None:
            try:
                await disk.put(digest, files)
            except TierError as problem:
                _log.warning("component %s is merged without disk cache: %s", digest, problem)
        return parsed

    async def _parsed(
        self, files: AdapterFiles, *, known_digest: str | None = None
    ) -> ParsedAdapter:
        return await asyncio.to_thread(
            parse_adapter,
            files.config,
            files.weights,
            limits=self._limits,
            known_digest=known_digest,
        )


async def _combined(
    recipe: Recipe, components: list[ParsedAdapter], limits: AdapterLimits
) -> AdapterFiles:
    """A caller that is cancelled stops the thread at its next matrix."""
    given_up = threading.Event()

    def check() -> None:
        if given_up.is_set():
            raise LoaderClosedError("nobody waits for this merge any more")

    try:
        return await asyncio.to_thread(merged_files, recipe, components, limits, check)
    except asyncio.CancelledError:
        given_up.set()
        raise


def _named(error: StorageError, component: Component) -> StorageError:
    error.message = f"component {component.name}: {error.message}"
    error.args = (error.message,)
    error.metadata["component"] = component.name
    return error


def _too_large(limit: int) -> AdapterTooLargeError:
    return AdapterTooLargeError(
        f"the components of this merge have more than {limit} bytes together, the limit of one "
        "adapter (--max-adapter-bytes)",
        metadata={"limit_bytes": str(limit)},
    )
