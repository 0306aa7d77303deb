"""Whole files over HTTP: bounded before and while they arrive, resumed where they broke off."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass

import httpcore2

from storage import pace
from storage.errors import AdapterTooLargeError, SourceUnreadableError, excerpt
from storage.sources.access import Access, Progress
from storage.sources.exchange import (
    NETWORK_ERRORS,
    CheckUrl,
    Exchange,
    Response,
    busy,
    integer,
    refuse,
    words,
)
from storage.sources.guard import GuardedBackend
from storage.sources.policy import SourcePolicy
from storage.sources.retry import Patience, TransientError, patiently

_MAX_CONNECTIONS = 256
_PROGRESS_BYTES = 1 << 20
_PROGRESS_S = 0.5
_TURN_S = 0.005
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@dataclass(slots=True)
class _Partial:
    """What has arrived of a file. validator: a strong ETag or a date, to resume only the same."""

    data: bytearray
    total: int | None = None
    validator: str = ""

    def restart(self) -> None:
        self.data.clear()
        self.total, self.validator = None, ""

    def keeps_more_than(self, num_bytes: int) -> bool:
        """Whether the next attempt goes on from more than `num_bytes`."""
        return bool(self.validator) and len(self.data) > num_bytes


class Downloader:
    """HTTP for sources. Belongs to one event loop; `aclose` when done.

    Connections go only where `policy` lets them (guard.py). Proxies of the environment are not
    used: behind one, the proxy would resolve the names.
    """

    def __init__(self, policy: SourcePolicy, patience: Patience) -> None:
        self._patience = patience
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=_MAX_CONNECTIONS,
            keepalive_expiry=30.0,
            network_backend=GuardedBackend(policy),
        )

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def get(
        self, url: str, *, file: str, max_bytes: int, access: Access, check: CheckUrl
    ) -> memoryview:
        """The content at `url`. file: its name, for progress and messages.

        Raises: AdapterTooLargeError; SourceError.
        """
        partial = _Partial(bytearray())
        await patiently(
            url, self._patience, lambda: self._attempt(url, partial, file, max_bytes, access, check)
        )
        return memoryview(partial.data).toreadonly()

    async def head(self, url: str, *, access: Access, check: CheckUrl) -> int:
        """The status of a HEAD request after redirections: 200 to 499, but 429.

        Raises: SourceError.
        """

        async def attempt() -> int:
            async with Exchange(
                self._pool, self._patience, "HEAD", url, {}, access, check
            ) as response:
                if response.status == 429 or response.status >= 500:
                    raise busy(response)
                return response.status

        return await patiently(url, self._patience, attempt)

    async def _attempt(
        self,
        url: str,
        partial: _Partial,
        file: str,
        max_bytes: int,
        access: Access,
        check: CheckUrl,
    ) -> None:
        headers: dict[str, str] = {}
        if partial.data and partial.validator:
            headers = {"Range": f"bytes={len(partial.data)}-", "If-Range": partial.validator}
        else:
            partial.restart()
        had = len(partial.data)
        try:
            async with Exchange(
                self._pool, self._patience, "GET", url, headers, access, check
            ) as response:
                _begin(response, partial, url, max_bytes)
                had = reported = len(partial.data)
                reported_s = yielded_s = time.monotonic()
                if access.on_progress:
                    access.on_progress(Progress(file, had, partial.total))
                async for chunk in response.response.aiter_stream():
                    _check_size(url, len(partial.data) + len(chunk), partial.total, max_bytes)
                    partial.data += chunk
                    await pace.rest_in_task()
                    now_s = time.monotonic()
                    if now_s - yielded_s >= _TURN_S:  # one read may hold 200,000 chunks
                        await asyncio.sleep(0)
                        yielded_s = time.monotonic()
                    if access.on_progress is None:
                        continue
                    many = len(partial.data) - reported >= _PROGRESS_BYTES
                    if many or now_s - reported_s >= _PROGRESS_S:
                        reported, reported_s = len(partial.data), now_s
                        access.on_progress(Progress(file, reported, partial.total))
        except NETWORK_ERRORS as error:
            raise TransientError(words(error), progressed=partial.keeps_more_than(had)) from None
        if partial.total is not None and len(partial.data) < partial.total:
            problem = "the answer ended early"
            raise TransientError(problem, progressed=partial.keeps_more_than(had))
        if access.on_progress:
            access.on_progress(Progress(file, len(partial.data), len(partial.data)))


def _begin(response: Response, partial: _Partial, url: str, max_bytes: int) -> None:
    """Takes the head of an answer to a GET; `partial` then stands where its body begins.

    Raises: AdapterTooLargeError, SourceError, TransientError.
    """
    status, headers = response.status, response.headers
    if status == 429 or status >= 500:
        raise busy(response)
    refuse(status, url)
    if status == 416:  # what we have is not a beginning of what is there now
        partial.restart()
        raise TransientError("the content changed while it was read")
    if status not in (200, 206):
        raise SourceUnreadableError(f"{excerpt(url)} answers with status {status}")
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise SourceUnreadableError(
            f"{excerpt(url)} answers encoded ({headers['content-encoding'][:50]!r}) though asked "
            "not to"
        )
    length = integer(headers.get("content-length"))
    if status == 206:
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        total = None if found is None else integer(found[3])
        if found is None or int(found[1]) != len(partial.data) or total != partial.total:
            partial.restart()
            raise TransientError("the range that came is not the one asked for")
    else:
        partial.restart()
        partial.total = length
        etag = headers.get("etag", "")
        strong = etag if etag.startswith('"') else ""
        partial.validator = strong or headers.get("last-modified", "")
        if partial.total is None:
            partial.validator = ""  # where it should end is unknown: begin afresh
    if partial.total is not None and partial.total > max_bytes:
        raise _too_large(url, partial.total, max_bytes)


def _check_size(url: str, size: int, total: int | None, max_bytes: int) -> None:
    if total is not None and size > total:
        raise SourceUnreadableError(
            f"{excerpt(url)} sends more than the {total} bytes that it announced"
        )
    if size > max_bytes:
        raise _too_large(url, size, max_bytes)


def _too_large(url: str, size: int, limit: int) -> AdapterTooLargeError:
    return AdapterTooLargeError(
        f"{excerpt(url)} has {size} bytes or more; the limit is {limit}",
        metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
    )
