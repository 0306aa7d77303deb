"""Adapters on web servers: `https://host/dir` holds the two files of a PEFT directory."""

from __future__ import annotations

from storage.adapter.config import parse_config
from storage.errors import (
    AdapterFormatError,
    SourceAccessError,
    SourceNotFoundError,
    excerpt,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.sources.access import ANYBODY, Access
from storage.sources.download import Downloader
from storage.sources.pickles import PICKLE_NAME, pickle_only
from storage.sources.policy import SourcePolicy, split


class HttpSource:
    """Reads https:// and http:// directories that `policy` opens; so must every redirection's
    target be. A caller's token is sent as `Authorization: Bearer`, to the first origin only."""

    def __init__(
        self,
        downloader: Downloader,
        policy: SourcePolicy,
        limits: AdapterLimits = DEFAULT_LIMITS,
    ) -> None:
        self._downloader = downloader
        self._policy = policy
        self._limits = limits

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: SourceError, AdapterTooLargeError, PickleRefusedError."""
        base = self._base(uri)
        get, check = self._downloader.get, self._check_url
        config = await get(
            f"{base}/{CONFIG_NAME}",
            file=CONFIG_NAME,
            max_bytes=self._limits.max_config_bytes,
            access=access,
            check=check,
        )
        try:
            weights = await get(
                f"{base}/{WEIGHTS_NAME}",
                file=WEIGHTS_NAME,
                max_bytes=self._limits.max_weights_bytes,
                access=access,
                check=check,
            )
        except SourceNotFoundError:
            pickle = f"{base}/{PICKLE_NAME}"
            if await self._downloader.head(pickle, access=access, check=check) < 400:
                raise pickle_only(uri) from None
            raise
        return AdapterFiles(config=bytes(config), weights=weights, uri=base)

    async def check(self, uri: str, access: Access) -> None:
        """Reads the configuration: a server may refuse HEAD to everybody, and may lead who has no
        access to a page that says so with status 200.

        Raises: SourceAccessError when the server refuses this caller; other SourceError.
        """
        url = f"{self._base(uri)}/{CONFIG_NAME}"
        config = await self._downloader.get(
            url,
            file=CONFIG_NAME,
            max_bytes=self._limits.max_config_bytes,
            access=access,
            check=self._check_url,
        )
        try:
            parse_config(bytes(config), limits=self._limits)
        except AdapterFormatError as error:
            raise SourceAccessError(
                f"{excerpt(url)} gives this caller no adapter's configuration: {error.message}"
            ) from None

    def _check_url(self, url: str) -> None:
        """Of a file, or of where it redirects: there a query is often a signature."""
        self._policy.check(url.partition("#")[0].partition("?")[0])

    def _base(self, uri: str) -> str:
        parts = split(uri)
        self._policy.check(uri)
        return parts._replace(path=parts.path.rstrip("/")).geturl()
