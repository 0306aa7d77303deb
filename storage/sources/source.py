"""A source turns a URI into an adapter's two files; the router picks one by scheme."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, runtime_checkable

from storage.errors import UnsupportedSchemeError, excerpt
from storage.files import AdapterFiles
from storage.sources.access import ANYBODY, Access
from storage.sources.policy import without_secrets

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}):(?=//)|(blob|merge):", re.IGNORECASE)


class Source(Protocol):
    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Read both files, bounded. Their `uri` names this very content where the source can tell
        (a commit). Raises: SourceError, AdapterTooLargeError, BadWeightsError, PickleRefusedError.
        Never blocks the event loop."""
        ...


@runtime_checkable
class GuardedSource(Protocol):
    """A source that asks who reads: only these take a token."""

    async def check(self, uri: str, access: Access) -> None:
        """Whether this caller may read `uri` at this moment, without reading it.

        Raises: SourceAccessError when not; other SourceError when it cannot be told."""
        ...


class SourceRouter:
    """Itself a Source. `sources`: lower-case scheme → source; a plain path is scheme "file".
    on_close: called by `aclose`, to end what the sources share."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._on_close = on_close

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        source = self._source_of(uri)
        if access == ANYBODY and access.on_progress is None:
            return await source.fetch(uri)
        _refuse_lost_token(source, uri, access)
        return await source.fetch(uri, access)

    async def check(self, uri: str, access: Access) -> None:
        """See GuardedSource; where nobody is asked who he is, everybody may read."""
        source = self._source_of(uri)
        _refuse_lost_token(source, uri, access)
        if isinstance(source, GuardedSource):
            await source.check(uri, access)

    async def aclose(self) -> None:
        if self._on_close is not None:
            await self._on_close()

    def _source_of(self, uri: str) -> Source:
        found = _SCHEME.match(uri)
        scheme = (found[1] or found[2]).lower() if found else "file"
        source = self._sources.get(scheme)
        if source is None:
            supported = ", ".join(_spelled(name) for name in sorted(self._sources)) or "none"
            raise UnsupportedSchemeError(
                f"source {excerpt(without_secrets(uri))} has scheme {scheme!r}; supported are "
                f"{supported}",
                metadata={"scheme": scheme},
            )
        return source


def _refuse_lost_token(source: Source, uri: str, access: Access) -> None:
    if access.token and not isinstance(source, GuardedSource):
        raise UnsupportedSchemeError(
            f"source {excerpt(without_secrets(uri))} is read without asking who the caller is, so "
            "a token means nothing there; send none",
            reason="TOKEN_UNSUPPORTED",
        )


def _spelled(scheme: str) -> str:
    return f"{scheme}:" if scheme in ("blob", "merge") else f"{scheme}://"
