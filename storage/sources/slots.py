"""A bound on what runs at once for each origin, so that one that hangs holds up only itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from posixpath import dirname, normpath
from urllib.parse import unquote, urlsplit

from storage.errors import MergeRefusedError
from storage.merge.recipe import is_merge, parse_recipe
from storage.slots import PrioritySlots


class OriginSlots:
    """At most `max_per_origin` holders for each origin. Belongs to one event loop."""

    def __init__(self, max_per_origin: int) -> None:
        self._max_per_origin = max_per_origin
        self._slots: dict[str, tuple[PrioritySlots, int]] = {}

    @asynccontextmanager
    async def hold(
        self, uri: str, priority: Callable[[], float] = lambda: 0.0
    ) -> AsyncGenerator[None]:
        """Waits for a place among the fetches of the origin of `uri`."""
        origin = origin_of(uri)
        slot, users = self._slots.get(origin) or (PrioritySlots(self._max_per_origin), 0)
        self._slots[origin] = slot, users + 1
        try:
            async with slot.at(priority):
                yield
        finally:
            slot, users = self._slots[origin]
            if users == 1:
                del self._slots[origin]
            else:
                self._slots[origin] = slot, users - 1


def origin_of(uri: str) -> str:
    """Scheme and host (or bucket, or hub organisation); of local paths the parent directory, which
    may be another mount, however it is spelled; of a merge those of its components together."""
    if is_merge(uri):
        try:
            sources = {origin_of(each.source) for each in parse_recipe(uri).components}
        except MergeRefusedError:
            return "merge:"
        return " ".join(sorted(sources))
    try:
        parts = urlsplit(uri)
    except ValueError:
        return ""
    if parts.scheme.lower() in ("", "file"):
        path = unquote(parts.path) if parts.scheme else uri
        return f"file:{dirname(normpath('/' + path.lstrip('/')))}"
    return f"{parts.scheme}://{parts.netloc}".lower()
