"""Adapters in object stores through fsspec: `s3://bucket/dir`, `gs://bucket/dir`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from storage import pace
from storage.errors import (
    AdapterTooLargeError,
    SourceAccessError,
    SourceExtraMissingError,
    SourceNotFoundError,
    excerpt,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.sources.access import ANYBODY, Access, Progress
from storage.sources.pickles import PICKLE_NAME, pickle_only
from storage.sources.policy import SourcePolicy, split
from storage.sources.retry import Patience, TransientError, patiently
from storage.sources.slots import origin_of
from storage.threads import LoneThreads

T = TypeVar("T")
_CHUNK_BYTES = 8 << 20
EXTRAS: Mapping[str, str] = {"s3": "s3", "gs": "gs"}
"""Scheme to the extra of our distribution that installs what fsspec needs for it."""
# Whatever tells one content from another, as the file systems call it.
_VERSION_FIELDS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "created")


class _Facts(NamedTuple):
    size: int
    version: str


class BucketSource:
    """Reads one scheme's buckets, those that `policy` opens, with the server's own credentials as
    the environment gives them to fsspec: they are the operator's, so it takes no token.

    Every call into fsspec has a thread of its own, since it may hang. A file is read in pieces;
    one that fails is tried again, and a file that changes meanwhile is begun afresh.
    """

    def __init__(
        self,
        scheme: str,
        policy: SourcePolicy,
        patience: Patience,
        limits: AdapterLimits = DEFAULT_LIMITS,
    ) -> None:
        self._scheme = scheme
        self._policy = policy
        self._patience = patience
        self._limits = limits
        self._threads = LoneThreads()

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: SourceError, AdapterTooLargeError, PickleRefusedError."""
        parts = split(uri)
        self._policy.check(uri)
        base = parts._replace(path=parts.path.rstrip("/")).geturl()
        system = await self._patiently(base, partial(_file_system, self._scheme))
        config = await self._read(system, base, CONFIG_NAME, self._limits.max_config_bytes, access)
        try:
            weights = await self._read(
                system, base, WEIGHTS_NAME, self._limits.max_weights_bytes, access
            )
        except SourceNotFoundError:
            if await self._patiently(base, lambda: system.exists(f"{base}/{PICKLE_NAME}")):
                raise pickle_only(uri) from None
            raise
        return AdapterFiles(bytes(config), weights, base)

    async def _read(
        self, system: Any, base: str, name: str, max_bytes: int, access: Access
    ) -> memoryview:
        path = f"{base}/{name}"
        data = bytearray()
        facts: _Facts | None = None

        async def attempt() -> None:
            nonlocal facts
            now = await self._call(path, partial(_facts, system, path))
            if now.size > max_bytes:
                raise AdapterTooLargeError(
                    f"{excerpt(path)} has {now.size} bytes; the limit is {max_bytes}",
                    metadata={"size_bytes": str(now.size), "limit_bytes": str(max_bytes)},
                )
            if now != facts:
                facts = now
                data.clear()
            had = len(data)
            while len(data) < now.size:
                end = min(len(data) + _CHUNK_BYTES, now.size)
                try:
                    piece: bytes = await self._call(
                        path, partial(system.cat_file, path, start=len(data), end=end)
                    )
                except TransientError as error:
                    raise TransientError(error.problem, progressed=len(data) > had) from None
                if len(piece) != end - len(data):
                    raise TransientError("a piece came short", progressed=len(data) > had)
                data.extend(piece)
                await pace.rest_in_task()
                if access.on_progress:
                    access.on_progress(Progress(name, len(data), now.size))
            if await self._call(path, partial(_facts, system, path)) != facts:
                raise TransientError("it changed while it was read")

        await patiently(path, self._patience, attempt)
        return memoryview(data).toreadonly()

    async def _patiently(self, path: str, work: Callable[[], T]) -> T:
        """Raises: SourceError."""
        return await patiently(path, self._patience, lambda: self._call(path, work))

    async def _call(self, path: str, work: Callable[[], T]) -> T:
        """Raises: SourceError, TransientError."""
        try:
            async with asyncio.timeout(self._patience.stall_s):
                return await self._threads.run(origin_of(path), work)
        except TimeoutError:
            raise TransientError(f"no answer within {self._patience.stall_s:g} s") from None
        except FileNotFoundError:
            raise SourceNotFoundError(f"{excerpt(path)} does not exist") from None
        except PermissionError as error:
            raise SourceAccessError(
                f"{excerpt(path)} is refused to this server's credentials: {str(error)[:200]}"
            ) from None
        except ImportError as error:
            extra = EXTRAS[self._scheme]
            raise SourceExtraMissingError(
                f"{self._scheme}:// needs a package that is not installed on this server "
                f"({str(error)[:200]}): pip install 'chorale[{extra}]'",
                metadata={"extra": extra},
            ) from None
        except Exception as error:
            # What an fsspec implementation raises is its own affair: network errors of many kinds.
            if isinstance(error, TransientError) or hasattr(error, "reason"):
                raise
            raise TransientError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _file_system(scheme: str) -> Any:
    fsspec: Any = import_module("fsspec")  # slow to import, and without types
    # Listings that were cached would hide new content.
    return fsspec.filesystem(scheme, use_listings_cache=False)


def _facts(system: Any, path: str) -> _Facts:
    system.invalidate_cache()
    info: Mapping[str, Any] = system.info(path)
    if info.get("type") == "directory" or info.get("size") is None:
        raise FileNotFoundError(path)
    version = " ".join(str(info[field]) for field in _VERSION_FIELDS if info.get(field))
    return _Facts(int(info["size"]), version)
