"""A source turns a URI into an adapter's two files; the router picks one by scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from storage.errors import UnsupportedSchemeError, excerpt
from storage.files import AdapterFiles

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):(?=//)")


class Source(Protocol):
    async def fetch(self, uri: str) -> AdapterFiles:
        """Read both files, bounded. Raises: SourceError, AdapterTooLargeError,
        PickleRefusedError. Never blocks the event loop."""
        ...


class SourceRouter:
    """Itself a Source. `sources`: lower-case scheme → source; a plain path is scheme "file"."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)

    async def fetch(self, uri: str) -> AdapterFiles:
        found = _SCHEME.match(uri)
        scheme = found[1].lower() if found else "file"
        source = self._sources.get(scheme)
        if source is None:
            supported = ", ".join(f"{name}://" for name in sorted(self._sources)) or "none"
            raise UnsupportedSchemeError(
                f"source {excerpt(uri)} has scheme {scheme!r}; supported are {supported}",
                metadata={"scheme": scheme},
            )
        return await source.fetch(uri)
