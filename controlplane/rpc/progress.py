"""Progress for a stream: the latest only, a few times a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from controlplane.tasks import end
from storage.sources import Progress

_INTERVAL_S = 0.25


class LatestProgress:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._latest: Progress | None = None

    def set(self, progress: Progress) -> None:
        self._latest = progress

    async def until(self, task: asyncio.Task[object]) -> AsyncGenerator[Progress]:
        """What is new, until `task` is done; it is cancelled when nobody listens any more."""
        try:
            while not (await asyncio.wait({task}, timeout=_INTERVAL_S))[0]:
                progress, self._latest = self._latest, None
                if progress is not None:
                    yield progress
        finally:
            await end(task)
