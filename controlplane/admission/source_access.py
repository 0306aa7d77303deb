"""Whether a caller may read a private source, asked for each request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Protocol

from storage.errors import SourceAccessError, SourceTimeoutError, excerpt
from storage.sources import Access

_MAX_REMEMBERED = 65_536
_CHECK_S = 10.0


class Checker(Protocol):
    """SourceRouter's half that is needed here."""

    async def check(self, uri: str, access: Access) -> None: ...


class SourceAccess:
    """Checks tokens at their source. A yes of the source holds for `ttl_s` seconds for this very
    token and source (0: it is asked each time); a no is never remembered.

    clock: seconds. Tokens are remembered as hashes.
    """

    def __init__(self, sources: Checker, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._sources = sources
        self._ttl_s = ttl_s
        self._clock = clock
        self._good_until: dict[bytes, float] = {}

    async def require(self, source: str, token: str) -> None:
        """Raises: SourceAccessError when the caller may not read `source`; other SourceError when
        that cannot be told now."""
        if not token:
            raise SourceAccessError(
                f"source {excerpt(source)} is private: send a token that opens it in the metadata "
                "entry (over HTTP the header) x-chorale-source-token",
                reason="SOURCE_TOKEN_MISSING",
            )
        key = hashlib.sha256(f"{source}\0{token}".encode()).digest()
        if self._good_until.get(key, 0.0) > self._clock():
            return
        self._good_until.pop(key, None)
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._sources.check(source, Access(token))
        except TimeoutError:
            raise SourceTimeoutError(
                f"source {excerpt(source)} did not say within {_CHECK_S:g} s whether the token "
                "opens it; try again"
            ) from None
        if self._ttl_s > 0:
            while len(self._good_until) >= _MAX_REMEMBERED:
                del self._good_until[next(iter(self._good_until))]
            self._good_until[key] = self._clock() + self._ttl_s
